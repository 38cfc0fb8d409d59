package selection

import (
	"fmt"
	"strings"
)

// parser reads a filter, one token ahead. Its first error stays.
type parser struct {
	text string
	at   int // after the token
	from int // of the token
	kind kind
	word string // of a word; quotes are taken off
	bare bool   // the word had no quotes
	err  error
}

type kind uint8

const (
	endOfText kind = iota
	openParen
	closeParen
	word
)

// is reports whether the token is the keyword.
func (p *parser) is(keyword string) bool { return p.kind == word && p.bare && p.word == keyword }

func (p *parser) fail(format string, args ...any) {
	if p.err != nil {
		return
	}
	have := "the end"
	if p.kind != endOfText {
		have = fmt.Sprintf("%q", p.text[p.from:p.at])
	}
	p.err = fmt.Errorf("filter %q: at %d, %s: %s", p.text, p.from+1, have, fmt.Sprintf(format, args...))
}

// advance reads the next token: a parenthesis, a word in double quotes, or anything up to a blank or parenthesis.
func (p *parser) advance() {
	for p.at < len(p.text) && isBlank(p.text[p.at]) {
		p.at++
	}
	p.from, p.word, p.bare = p.at, "", false
	if p.at == len(p.text) {
		p.kind = endOfText
		return
	}
	switch c := p.text[p.at]; c {
	case '(', ')':
		p.at++
		p.kind = openParen
		if c == ')' {
			p.kind = closeParen
		}
	case '"':
		p.kind = word
		n := strings.IndexByte(p.text[p.at+1:], '"')
		if n < 0 {
			p.at = len(p.text)
			p.fail("a quote is not closed")
			return
		}
		p.word = p.text[p.at+1 : p.at+1+n]
		p.at += n + 2
	default:
		p.kind, p.bare = word, true
		for p.at < len(p.text) && !isBlank(p.text[p.at]) && p.text[p.at] != '(' && p.text[p.at] != ')' && p.text[p.at] != '"' {
			p.at++
		}
		p.word = p.text[p.from:p.at]
	}
}

func isBlank(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }
