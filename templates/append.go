package templates

import (
	"bytes"
	"slices"

	"github.com/sockflow/sockflow/flowcache"
)

// Append appends the Data Record of r in the layout of t, which is that of r's kind.
func (s *Set) Append(dst []byte, t *Template, r *flowcache.Record) []byte {
	return s.AppendCut(dst, t, r, s.opt.MaxString)
}

// AppendCut is Append with strings of variable length of at most limit octets.
func (s *Set) AppendCut(dst []byte, t *Template, r *flowcache.Record, limit int) []byte {
	dst = slices.Grow(dst, t.Fixed)
	c := &s.ctx
	for i := range t.steps {
		st := &t.steps[i]
		switch st.op {
		case opTexts:
			dst = st.texts(dst, r, limit)
		case opText:
			dst = AppendString(dst, st.text(c, r), limit)
		case opSame:
			if len(st.same) <= limit {
				dst = append(dst, st.same...)
			} else {
				dst = AppendString(dst, st.text(c, r), limit)
			}
		case opRun:
			n := len(dst)
			dst = slices.Grow(dst, st.octets)[:n+st.octets]
			st.put(c, dst[n:], r)
		case opNumber:
			v := st.number(c, r)
			for shift := 8 * (st.octets - 1); shift >= 0; shift -= 8 {
				dst = append(dst, byte(v>>shift))
			}
		case opIPv4:
			dst = append(dst, st.address(r)[12:]...)
		case opIPv6:
			dst = append(dst, st.address(r)[:]...)
		case opFixedText:
			dst = AppendFixed(dst, st.text(c, r), st.octets)
		}
	}
	return dst
}

// congestionNames keeps the few strings that congestion control algorithms are known by, so that none is made for each record.
type congestionNames struct {
	raw  [8][16]byte
	text [8]string
	next int
}

func (n *congestionNames) of(raw *[16]byte) string {
	for i := range n.raw {
		if n.raw[i] == *raw {
			return n.text[i]
		}
	}
	name, _, _ := bytes.Cut(raw[:], []byte{0})
	n.raw[n.next], n.text[n.next] = *raw, string(name)
	n.next = (n.next + 1) % len(n.raw)
	return n.text[(n.next+len(n.raw)-1)%len(n.raw)]
}
