package values

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestNext(t *testing.T) {
	for in, want := range map[string]string{
		`{"a":[1,{"b":"}]\""}]} [] "x" 7 true null`: `{"a":[1,{"b":"}]\""}]}|[]|"x"|7|true|null|EOF`,
		``:               `EOF`,
		` `:              `EOF`,
		`{"a":`:          `unexpected EOF`,
		`"a`:             `unexpected EOF`,
		`"a\`:            `unexpected EOF`,
		`12`:             `12|EOF`,
		`]`:              `not JSON`,
		`<html>`:         `not JSON`,
		`{}}`:            `{}|not JSON`,
		"\x00":           `not JSON`,
		"-1.5E+3,":       `-1.5E+3|not JSON`,
		"{}\n{}\r\n\t[]": `{}|{}|[]|EOF`,
	} {
		r := NewReader(strings.NewReader(in), 100)
		var got []string
		for {
			b, err := r.Next()
			if err != nil {
				got = append(got, err.Error())
				break
			}
			got = append(got, string(b))
		}
		if s := strings.Join(got, "|"); s != want {
			t.Errorf("%q: %s, want %s", in, s, want)
		}
	}
}

// TestTooLong: what is too long is skipped, and costs neither memory nor what follows.
func TestTooLong(t *testing.T) {
	long := `{"id":7,"x":["` + strings.Repeat(`\"]}`, 500) + `"]}`
	r := NewReader(strings.NewReader(`{"a":1}`+long+`{"b":2}`), 1000)
	if b, err := r.Next(); string(b) != `{"a":1}` || err != nil {
		t.Errorf("%s %v", b, err)
	}
	if b, err := r.Next(); !errors.Is(err, ErrTooLong) || string(b) != long[:1000] {
		t.Errorf("%s %v", b, err)
	}
	if b, err := r.Next(); string(b) != `{"b":2}` || err != nil {
		t.Errorf("%s %v", b, err)
	}
	r = NewReader(io.MultiReader(strings.NewReader(`"`), endlessly{}), 1000)
	if _, err := r.Next(); !errors.Is(err, ErrEndless) || cap(r.buf) > 4000 {
		t.Errorf("%v, %d octets", err, cap(r.buf))
	}
	var kept []string
	r = NewReader(strings.NewReader(`{"items":[1,`+long+`,3],"m":{}}`), 1000)
	err := r.Object(func(name string) error {
		if name != "items" {
			_, err := r.Next()
			return err
		}
		return r.Array(func(b []byte, err error) error {
			kept = append(kept, fmt.Sprint(len(b), err))
			return nil
		})
	})
	if err != nil || strings.Join(kept, " ") != "1 <nil> 1000 a value is too long 1 <nil>" {
		t.Errorf("%v %q", err, kept)
	}
}

type endlessly struct{}

func (endlessly) Read(p []byte) (int, error) { return copy(p, strings.Repeat("x", len(p))), nil }

// FuzzReader: values are where encoding/json sees them, and nothing else panics or goes on for ever.
func FuzzReader(f *testing.F) {
	f.Add([]byte(`{"items":[{"a":"b"},1,null,"\\\""],"m":true}`))
	f.Add([]byte(`[] {} "x" 1 2`))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := NewReader(bytes.NewReader(b), 1<<20)
		d := json.NewDecoder(bytes.NewReader(b))
		for {
			var want json.RawMessage
			if d.Decode(&want) != nil || !strings.ContainsAny(string(want[:1]), `{["`) {
				break // of numbers without a blank between them it sees two
			}
			got, err := r.Next()
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%q: %v, want %q", got, err, want)
			}
		}
		r = NewReader(bytes.NewReader(b), 8)
		r.Object(func(string) error {
			if c, _ := r.Peek(); c == '[' {
				return r.Array(func([]byte, error) error { return nil })
			}
			_, err := r.Next()
			return err
		})
	})
}
