package main

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// What programs, control groups, containers and senders are called is written by whoever runs them, and a terminal
// obeys what it is sent: it moves the cursor, changes the title, answers, or shows text backwards. Every table, note
// and error goes through printable, and every line of JSON through appendEscaped. The log's handler (slog.TextHandler)
// quotes what is not printable itself.

// printable replaces by U+FFFD what is not a printable character: controls (C0, DEL, C1), formatting characters such as
// those that change the direction of writing, and what is not UTF-8.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, s)
}

// appendPrintable appends a line, without its end, as printable has it.
func appendPrintable(dst, line []byte) []byte {
	for len(line) > 0 {
		r, n := utf8.DecodeRune(line)
		if unicode.IsPrint(r) && !(r == utf8.RuneError && n == 1) {
			dst = append(dst, line[:n]...)
		} else {
			dst = utf8.AppendRune(dst, unicode.ReplacementChar)
		}
		line = line[n:]
	}
	return dst
}

// appendEscaped appends JSON with what is not printable escaped (RFC 8259, section 7). Encoders escape C0 controls
// alone; whatever else is not printable can be in strings only.
func appendEscaped(dst, json []byte) []byte {
	const hex = "0123456789abcdef"
	escape := func(r uint32) {
		dst = append(dst, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
	}
	done := 0
	for i := 0; i < len(json); {
		if json[i] < 0x7f {
			i++
			continue
		}
		r, n := utf8.DecodeRune(json[i:])
		bad := r == utf8.RuneError && n == 1
		if unicode.IsPrint(r) && !bad {
			i += n
			continue
		}
		dst = append(dst, json[done:i]...)
		if r > 0xffff {
			r -= 0x10000
			escape(0xd800 | uint32(r)>>10)
			escape(0xdc00 | uint32(r)&0x3ff)
		} else {
			escape(uint32(r))
		}
		i += n
		done = i
	}
	return append(dst, json[done:]...)
}
