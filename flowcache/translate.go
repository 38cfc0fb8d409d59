package flowcache

// Addresses may be translated (NAT) between the ends of a flow. Where both ends are here, the two sockets show it;
// otherwise Config.Translate is called, once, and the few flows that are translated keep its answer.

// remember keeps what the other end of e sees.
func (c *Cache) remember(e *entry, t Translation) {
	if n := len(c.untranslated); n > 0 {
		e.translated = c.untranslated[n-1]
		c.untranslated = c.untranslated[:n-1]
		c.translations[e.translated] = t
		return
	}
	if len(c.translations) == 0 {
		c.translations = append(c.translations, Translation{}) // 0 is none
	}
	e.translated = uint32(len(c.translations))
	c.translations = append(c.translations, t)
}

// began sets the role of e from the translation's path, if no source reported it.
func (e *entry) began(p *Path) {
	if e.role != RoleUnknown {
		return
	}
	k := e.id.key
	if k.NetNS = 0; k == p.Near {
		e.role = RoleInitiator
	} else {
		e.role = RoleResponder
	}
}

// translate completes r, the record of flow e, whose other end is not here.
func (c *Cache) translate(r *Record, e *entry, final bool) {
	var beyond Translation // in the direction of e's key: from the end here
	switch {
	case e.translated != 0:
		beyond = c.translations[e.translated]
	case e.asked || c.cfg.Translate == nil || oneToMany(e.id.key):
		return
	default:
		e.asked = true
		p, ok := c.cfg.Translate(e.id.key, r.Start)
		if !ok {
			return
		}
		beyond = p.beyond(e.id.key).Translation()
		if !final {
			c.remember(e, beyond)
		}
	}
	if r.Source.Local {
		r.Post = beyond
		return
	}
	r.Pre = Translation{beyond.Dst, beyond.Src, beyond.DstPort, beyond.SrcPort}
}
