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

// began sets the role of e from the translation's path, if no source reported it. Where the path begins at a datagram socket that seems to have been
// spoken to first, the source has not seen what it sent: IPVS sends the datagrams of its own host on by another way.
func (e *entry) began(p *Path) {
	k := e.id.key
	k.NetNS = 0
	here := k == p.Near
	switch {
	case e.role == RoleUnknown && here:
		e.role = RoleInitiator
	case e.role == RoleUnknown:
		e.role = RoleResponder
	case e.role == RoleResponder && here && e.datagram && e.out == Counters{}:
		e.role, e.unsent = RoleInitiator, true
	}
}

// hear takes what e sent out of the source's sight from its peer, which received it, and the other way round.
func (e *entry) hear(peer *entry) {
	if e.unsent {
		e.out.raise(&peer.in)
	}
	if peer.unsent {
		peer.out.raise(&e.in)
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
