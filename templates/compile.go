package templates

import "slices"

// compile makes the template of a kind.
func (s *Set) compile(k kind) *Template {
	var l []*field
	for i := range s.fields {
		if s.fields[i].in(k) {
			l = append(l, &s.fields[i])
		}
	}
	for _, name := range giveWay {
		if len(l) <= MaxFields && !s.tooLong(s.lengths(l)) {
			break
		}
		if !s.added[name] {
			l = slices.DeleteFunc(l, func(f *field) bool { return f.name == name })
		}
	}
	lengths := s.lengths(l)
	s.shorten(l, lengths)
	t := &Template{ID: s.page + uint16(k)}
	for i, f := range l {
		n, _ := f.element.Number(s.opt)
		t.Fields = append(t.Fields, Field{n, lengths[i], f.element})
		if f.key && i < 64 {
			t.Keys |= 1 << i
		}
		if lengths[i] != Variable {
			t.Fixed += int(lengths[i])
		}
	}
	t.Padding = len(l) > 0 && l[len(l)-1].name == "paddingOctets"
	for i := 0; i < len(l); {
		if r := s.runAt(l[i:]); r != nil {
			st := step{op: opRun, octets: r.octets, put: r.put}
			if r.text != nil {
				st = step{op: opTexts, texts: r.text}
			}
			t.steps = append(t.steps, st)
			i += len(r.names)
			continue
		}
		st := single(l[i], t.Fields[i].Length)
		if st.op == opText && l[i].node != nil && l[i].node(k) {
			st.op, st.same = opSame, AppendString(nil, s.opt.Node, s.opt.MaxString)
		}
		t.steps = append(t.steps, st)
		i++
	}
	return t
}

func (s *Set) lengths(l []*field) []uint16 {
	lengths := make([]uint16, len(l))
	for i, f := range l {
		lengths[i] = f.element.Length(s.opt)
	}
	return lengths
}

// tooLong reports whether a record of NetFlow v9 with fields of these lengths fits into no message.
func (s *Set) tooLong(lengths []uint16) bool {
	sum := 0
	for _, n := range lengths {
		sum += int(n)
	}
	return s.opt.V9 && sum > s.opt.MaxRecord
}

// shorten halves the longest strings of NetFlow v9 until a record fits into a message.
func (s *Set) shorten(l []*field, lengths []uint16) {
	for s.tooLong(lengths) {
		longest := -1
		for i, f := range l {
			if f.element.Type == String && lengths[i] > 1 && (longest < 0 || lengths[i] > lengths[longest]) {
				longest = i
			}
		}
		if longest < 0 {
			return
		}
		lengths[longest] /= 2
	}
}

// runAt returns the run that l begins with, nil if with none.
func (s *Set) runAt(l []*field) *run {
next:
	for i := range s.runs {
		r := &s.runs[i]
		if len(l) < len(r.names) || r.text != nil && s.opt.V9 {
			continue
		}
		for j, name := range r.names {
			if l[j].name != name {
				continue next
			}
		}
		return r
	}
	return nil
}

func single(f *field, length uint16) step {
	st := step{octets: int(length), number: f.number, text: f.text, address: f.address}
	switch {
	case f.text != nil && length == Variable:
		st.op, st.octets = opText, 0
	case f.text != nil:
		st.op = opFixedText
	case f.address != nil && length == 4:
		st.op = opIPv4
	case f.address != nil:
		st.op = opIPv6
	default:
		st.op = opNumber
	}
	return st
}
