package templates

import (
	"encoding/binary"
	"slices"
	"unicode/utf8"
)

// Of eight octets w, an octet of w or of w less ones has its highest bit set if that octet, or one before it, is not ASCII or is NUL.
const ones, highs = 0x0101010101010101, 0x8080808080808080

// AppendString appends a string of variable length (RFC 7011, section 7): at most limit octets, well-formed UTF-8, no NUL. What
// is ill-formed, paths may be any octets, becomes U+FFFD.
//
// It checks while it copies, eight octets at a time, which costs next to nothing: so strings need no mark that they were checked.
func AppendString(dst []byte, s string, limit int) []byte {
	at, n := len(dst), len(s)
	if n >= 255 || n > limit || at+1+n > cap(dst) {
		return appendAny(dst, s, limit)
	}
	out := dst[:at+1+n]
	out[at] = byte(n)
	d, t := out[at+1:], []byte(s)
	var seen uint64
	switch {
	case n >= 8:
		last := binary.LittleEndian.Uint64(t[n-8:]) // with some of what is before it
		binary.LittleEndian.PutUint64(d[n-8:], last)
		seen = last | (last - ones)
		for len(t) >= 16 && len(d) >= 16 {
			v, w := binary.LittleEndian.Uint64(t), binary.LittleEndian.Uint64(t[8:])
			binary.LittleEndian.PutUint64(d, v)
			binary.LittleEndian.PutUint64(d[8:], w)
			seen |= v | (v - ones) | w | (w - ones)
			d, t = d[16:], t[16:]
		}
		if len(t) >= 8 && len(d) >= 8 {
			w := binary.LittleEndian.Uint64(t)
			binary.LittleEndian.PutUint64(d, w)
			seen |= w | (w - ones)
		}
	case n >= 4:
		a, b := binary.LittleEndian.Uint32(t), binary.LittleEndian.Uint32(t[n-4:])
		binary.LittleEndian.PutUint32(d, a)
		binary.LittleEndian.PutUint32(d[n-4:], b)
		w := uint64(a) | uint64(b)<<32
		seen = w | (w - ones)
	default:
		for i, c := range t {
			d[i] = c
			seen |= uint64(c | (c - 1))
		}
	}
	if seen&highs != 0 {
		return appendAny(dst, s, limit)
	}
	return out
}

// appendAny is AppendString for what is long, or not plain ASCII, or needs more room.
func appendAny(dst []byte, s string, limit int) []byte {
	if s = Cut(s, limit); !clean(s) {
		s = Cut(scrub(s), limit)
	}
	if n := len(s); n < 255 {
		dst = append(dst, byte(n))
	} else {
		dst = append(dst, 255, byte(n>>8), byte(n))
	}
	return append(dst, s...)
}

// AppendFixed appends a string of fixed length, filled up with NUL, as NetFlow v9 has it.
func AppendFixed(dst []byte, s string, length int) []byte {
	if s = Cut(s, length); !clean(s) {
		s = Cut(scrub(s), length)
	}
	at := len(dst)
	dst = slices.Grow(dst, length)[:at+length]
	clear(dst[at+copy(dst[at:], s):])
	return dst
}

// Cut shortens s to at most limit octets, between two runes.
func Cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for i := 0; i < utf8.UTFMax && limit > 0 && !utf8.RuneStart(s[limit]); i++ {
		limit--
	}
	return s[:limit]
}

// clean reports whether s may be sent as it is.
func clean(s string) bool {
	t := []byte(s)
	for len(t) >= 8 {
		if w := binary.LittleEndian.Uint64(t); (w|(w-ones))&highs != 0 {
			break
		}
		t = t[8:]
	}
	for i, c := range t {
		if c == 0 || c >= utf8.RuneSelf {
			return c != 0 && utf8.ValidString(s) && !hasNUL(s[len(s)-len(t)+i:])
		}
	}
	return true
}

func hasNUL(s string) bool {
	for i := range len(s) {
		if s[i] == 0 {
			return true
		}
	}
	return false
}

// scrub replaces NUL and what is not UTF-8 by U+FFFD.
func scrub(s string) string {
	b := make([]rune, 0, len(s))
	for _, r := range s { // an ill-formed octet ranges as U+FFFD
		if r == 0 {
			r = utf8.RuneError
		}
		b = append(b, r)
	}
	return string(b)
}
