package main

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gdamore/tcell/v2"

	"github.com/sockflow/sockflow/flowcache"
)

// hostile is what a program, a control group or a container may be called: it clears the screen, sets the title, asks
// the terminal to answer, by C0, C1 and DEL, writes backwards, and is not UTF-8.
const hostile = "a\x1b[2J\x1b]0;t\a\u009b6n\x7f\u202eb\u2066\u2028\ufeff\r\n\xff\xc0\x80\U000e0041é漢"

// harmless reports what in an output a terminal might obey.
func harmless(t *testing.T, what string, out []byte) {
	t.Helper()
	if !utf8.Valid(out) {
		t.Errorf("%s: not UTF-8: %q", what, out)
	}
	for _, r := range string(out) {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%s: %U in %q", what, r, out)
			return
		}
	}
	if !strings.Contains(string(out), "é漢") {
		t.Errorf("%s: what is printable is not printed: %q", what, out)
	}
}

// hostileIn sets every string of a structure.
func hostileIn(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		hostileIn(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				hostileIn(v.Field(i))
			}
		}
	case reflect.String:
		v.SetString(hostile)
	}
}

// TestHostileNames: whatever others wrote, no table, line of JSON, note, error or log holds anything that a terminal
// obeys, and JSON still says what it was.
func TestHostileNames(t *testing.T) {
	rec := *sampleRecord()
	hostileIn(reflect.ValueOf(&rec).Elem())
	recs := []flowcache.Record{rec, rec}
	recs[1].Dest.Local, recs[1].Source.Local = true, false
	recs[0].Source.Container.PodName = "" // so that the container's name is shown, and of the other the pod's
	var iface flowcache.Interface
	hostileIn(reflect.ValueOf(&iface).Elem())
	for name, f := range map[string]form{"table": &tableForm{}, "json": newJSONForm(), "ntop": &ntopForm{}} {
		out := f.interfaces(f.records(nil, recs), []flowcache.Interface{iface})
		harmless(t, name, out)
		for line := range strings.Lines(string(out)) {
			if name != "table" && !json.Valid([]byte(line)) {
				t.Errorf("%s: no JSON: %q", name, line)
			}
		}
	}
	var j jsonRecord
	lines := newJSONForm().records(nil, recs)
	if err := json.Unmarshal(lines[:bytes.IndexByte(lines, '\n')], &j); err != nil {
		t.Fatal(err)
	}
	if want := strings.ToValidUTF8(strings.ReplaceAll(hostile, "\xff\xc0\x80", "\ufffd\ufffd\ufffd"), "?"); j.SourceEnd.User != want {
		t.Errorf("JSON says %q, want %q", j.SourceEnd.User, want)
	}

	socks := []listed{{o: flowcache.Observation{Key: rec.Key}, end: &rec.Source, peer: &rec.Dest}}
	for name, print := range listOutputs {
		var b bytes.Buffer
		if err := print(&b, socks); err != nil {
			t.Fatal(err)
		}
		harmless(t, "list "+name, b.Bytes())
		if name == "csv" {
			if rows, err := csv.NewReader(&b).ReadAll(); err != nil || len(rows) != 2 {
				t.Errorf("csv: %d rows, %v", len(rows), err)
			}
		}
	}

	m := newTopModel(time.Second, t.TempDir())
	give(m, recs)
	for _, v := range topViews {
		rows := v.arrange(m.snapshot(rec.End), topScope{}, "", topOrder{column: -1}, false, "")
		screen := tcell.NewSimulationScreen("UTF-8")
		if err := screen.Init(); err != nil {
			t.Fatal(err)
		}
		screen.SetSize(400, 24)
		notes := &lastNotes{}
		notes.Write([]byte("msg=" + hostile))
		u := &topUI{screen: screen, model: m, notes: notes, flows: m.snapshot(rec.End), rows: rows, stack: []topLevel{{view: &v, scope: topScope{pod: hostile}}}, order: topOrder{column: -1}}
		u.draw()
		cells, _, _ := screen.GetContents()
		var shown []rune
		for _, c := range cells {
			shown = append(shown, c.Runes...)
		}
		harmless(t, "top "+v.name, []byte(string(shown)))
		screen.Fini()
		if len(rows) > 0 {
			harmless(t, "top --batch "+v.name, []byte(v.line(&rows[0], v.widths(400), topOrder{column: -1})))
		}
	}

	d := &doctor{group: "g"}
	d.say(bad, hostile, hostile, hostile)
	for _, asJSON := range []bool{false, true} {
		var b bytes.Buffer
		d.report(&b, asJSON)
		harmless(t, "doctor", b.Bytes())
	}

	var errs bytes.Buffer
	newLogger(&errs, "info").With(hostile, 1).WithGroup(hostile).Info(hostile, "key", hostile, "any", struct{ S string }{hostile})
	harmless(t, "log", errs.Bytes())
	errs.Reset()
	execute([]string{"exporter", "replay", hostile}, &bytes.Buffer{}, &errs)
	harmless(t, "error", errs.Bytes())
}

// TestHostileRecords: what a collector is sent is shown likewise.
func TestHostileRecords(t *testing.T) {
	dir := t.TempDir()
	flows := jsonLines(t, replayed(t, "../../testdata/captures/http.pcap"))
	var named bytes.Buffer
	for i := range flows {
		f := &flows[i]
		f.SourceEnd = &jsonEnd{PID: 1, Path: "/" + hostile, Name: hostile, User: hostile, Unit: hostile, Service: hostile, Container: &jsonContainer{Name: hostile, Image: hostile, ID: hostile}}
		json.NewEncoder(&named).Encode(f)
	}
	if err := os.WriteFile(filepath.Join(dir, "names"), named.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	dump := filepath.Join(dir, "flows.ipfix")
	replayed(t, "../../testdata/captures/http.pcap", "--metadata", filepath.Join(dir, "names"), "--node-name", hostile, "-c", "file:"+dump)
	for _, output := range []string{"table", "json"} {
		for _, options := range []string{"--options", "--options=false"} {
			var out, errs bytes.Buffer
			if code := execute([]string{"exporter", "collect", "-o", output, options, dump}, &out, &errs); code != 0 {
				t.Fatal(errs.String())
			}
			if b := out.Bytes(); slices.ContainsFunc(bytes.Runes(b), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) || !utf8.Valid(b) {
				t.Errorf("collect -o %s %s: %q", output, options, b)
			}
			if !strings.Contains(out.String(), "é漢") {
				t.Errorf("collect -o %s %s shows no names: %q", output, options, out.String())
			}
		}
	}
}

// FuzzPrintable: an output is always printable, and JSON means the same.
func FuzzPrintable(f *testing.F) {
	f.Add(hostile)
	f.Fuzz(func(t *testing.T, s string) {
		out := appendPrintable(nil, []byte(s))
		if string(out) != printable(s) {
			t.Fatalf("%q, %q", out, printable(s))
		}
		b, _ := json.Marshal(s)
		var was, is string
		escaped := appendEscaped(nil, b)
		if json.Unmarshal(b, &was) != nil || json.Unmarshal(escaped, &is) != nil || was != is {
			t.Fatalf("%q: %q, %q", s, was, is)
		}
		for _, r := range string(out) + string(escaped) {
			if !unicode.IsPrint(r) {
				t.Fatalf("%U in %q or %q", r, out, escaped)
			}
		}
	})
}
