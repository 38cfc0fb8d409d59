package selection

import (
	"github.com/sockflow/sockflow/flowcache"
)

// Filter selects records. docs/filters.md describes the language. It may be used by several goroutines.
type Filter struct {
	text  string
	match predicate
}

// predicate reports whether it holds for a record.
type predicate func(*flowcache.Record) bool

// Match reports whether the filter selects r. It allocates nothing.
func (f *Filter) Match(r *flowcache.Record) bool { return f.match(r) }

// String is the text that the filter was made from.
func (f *Filter) String() string { return f.text }

// Parse reads a filter. An error says where it is wrong.
func Parse(s string) (*Filter, error) {
	p := parser{text: s}
	p.advance()
	exclude := false
	if p.word == "include" || p.word == "exclude" {
		exclude = p.word == "exclude"
		p.advance()
	}
	m := p.or(0)
	if p.err == nil && p.kind != endOfText {
		p.fail(`want "and", "or" or the end`)
	}
	if p.err != nil {
		return nil, p.err
	}
	if exclude {
		m = not(m)
	}
	return &Filter{s, m}, nil
}

func not(a predicate) predicate { return func(r *flowcache.Record) bool { return !a(r) } }

func and(a, b predicate) predicate {
	return func(r *flowcache.Record) bool { return a(r) && b(r) }
}

func or(a, b predicate) predicate {
	return func(r *flowcache.Record) bool { return a(r) || b(r) }
}

// or reads terms joined by "or".
func (p *parser) or(depth int) predicate {
	m := p.and(depth)
	for p.err == nil && p.is("or") {
		p.advance()
		m = or(m, p.and(depth))
	}
	return m
}

func (p *parser) and(depth int) predicate {
	m := p.unary(depth)
	for p.err == nil && p.is("and") {
		p.advance()
		m = and(m, p.unary(depth))
	}
	return m
}

// maxDepth bounds the recursion on input from outside.
const maxDepth = 100

func (p *parser) unary(depth int) predicate {
	switch {
	case p.err != nil:
	case depth > maxDepth:
		p.fail("too deeply nested")
	case p.is("not"):
		p.advance()
		return not(p.unary(depth + 1))
	case p.kind == openParen:
		p.advance()
		m := p.or(depth + 1)
		if p.err == nil && p.kind != closeParen {
			p.fail(`want ")"`)
		}
		p.advance()
		return m
	default:
		return p.property()
	}
	return nil
}
