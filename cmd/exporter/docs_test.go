package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/sockflow/sockflow/ipfix"
	"github.com/sockflow/sockflow/selection"
)

// words splits a command line as a shell does, as far as the documentation needs it. It stops at a pipe, a redirection or a comment.
func words(line string) (list []string) {
	var word strings.Builder
	inWord, quote := false, rune(0)
	flush := func() {
		if inWord {
			list = append(list, word.String())
			word.Reset()
			inWord = false
		}
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, inWord = r, true
		case r == ' ' || r == '\t':
			flush()
		case !inWord && (r == '#' || r == '|' || r == '>' || r == ';' || r == '<' || r == '&'):
			return list
		case r == ';':
			flush()
			return list
		default:
			word.WriteRune(r)
			inWord = true
		}
	}
	flush()
	return list
}

// documented are the command lines of the program in the documentation, by where they are.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(files) < 5 {
		t.Fatal(files, err)
	}
	lines := map[string][]string{}
	inline := regexp.MustCompile("`(?:[a-z0-9 .>-]*; )?(sockflow [^`]+)`")
	for _, file := range append(files, "../../README.md") {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.ReplaceAll(string(b), "\\\n", " ")
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			if code, ok := strings.CutPrefix(line, "    "); ok {
				if i := strings.Index(code, "sockflow "); i == 0 || i > 0 && strings.HasPrefix(code, "setpriv ") && code[i-1] == ' ' {
					lines[filepath.Base(file)+": "+code] = words(code[i:])
				}
				continue
			}
			for _, m := range inline.FindAllStringSubmatch(strings.ReplaceAll(line, `\|`, "|"), -1) {
				lines[filepath.Base(file)+": "+m[1]] = words(m[1])
			}
		}
	}
	return lines
}

// TestDocumentedCommands: every command line in the documentation is one that the program takes: commands, flags and their values,
// collectors' URLs with their options, filters.
func TestDocumentedCommands(t *testing.T) {
	lines := documented(t)
	if len(lines) < 40 {
		t.Errorf("%d command lines", len(lines))
	}
	seen := map[string]bool{}
	for where, args := range lines {
		root := newCommand("sockflow", nil, nil)
		root.InitDefaultCompletionCmd() // as Execute does
		cmd, rest, err := root.Find(args[1:])
		if err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		seen[cmd.Name()] = true
		if err := cmd.ParseFlags(rest); err != nil {
			t.Errorf("%s: %v", where, err)
			continue
		}
		if cmd.Args != nil {
			if err := cmd.Args(cmd, cmd.Flags().Args()); err != nil {
				t.Errorf("%s: %v", where, err)
			}
		}
		cmd.Flags().Visit(func(f *pflag.Flag) {
			list, ok := f.Value.(pflag.SliceValue)
			if !ok {
				return
			}
			for _, value := range list.GetSlice() {
				switch {
				case f.Name == "filter":
					if _, err := selection.Parse(value); err != nil {
						t.Errorf("%s: %v", where, err)
					}
				case f.Name != "collector" || value == "URL" || strings.HasPrefix(value, "json:"):
				case strings.HasPrefix(value, "zmq:"):
					if _, err := ipfix.ParseNtopngURL(value, ipfix.NtopngConfig{}); err != nil {
						t.Errorf("%s: %v", where, err)
					}
				default:
					if _, err := ipfix.ParseURL(value, ipfix.Config{}); err != nil {
						t.Errorf("%s: %v", where, err)
					}
				}
			}
		})
	}
	for _, name := range []string{"sockflow", "list", "top", "doctor", "collect", "replay", "elements"} {
		if !seen[name] {
			t.Errorf("%s is not documented", name)
		}
	}
}
