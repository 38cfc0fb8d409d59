package kube

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestDecodeList(t *testing.T) {
	for name, c := range map[string]struct {
		in            string
		n             int
		version, next string
		fails         bool
	}{
		"empty":           {`{"metadata":{"resourceVersion":"7"},"items":[]}`, 0, "7", "", false},
		"null":            {`{"metadata":{"resourceVersion":"7"},"items":null}`, 0, "7", "", false},
		"page":            {`{"kind":"PodList","metadata":{"resourceVersion":"7","continue":"x"},"items":[{"metadata":{"name":"a"}},{}]}`, 2, "7", "x", false},
		"metadata last":   {`{"items":[{}],"metadata":{"resourceVersion":"7"},"extra":{"a":[1,2]}}`, 1, "7", "", false},
		"no version":      {`{"items":[{}]}`, 1, "", "", true},
		"cut":             {`{"metadata":{"resourceVersion":"7"},"items":[{}`, 1, "", "", true},
		"a list":          {`[]`, 0, "", "", true},
		"items no list":   {`{"metadata":{"resourceVersion":"7"},"items":{}}`, 0, "", "", true},
		"nothing":         {``, 0, "", "", true},
		"too big an item": {`{"metadata":{"resourceVersion":"7"},"items":["` + strings.Repeat("x", maxObject+1<<17) + `",{}]}`, 2, "7", "", false},
	} {
		n := 0
		version, next, err := decodeList(strings.NewReader(c.in), func(*item, error) error { n++; return nil })
		if n != c.n || version != c.version || next != c.next || (err != nil) != c.fails {
			t.Errorf("%s: %d items, %q, %q, %v", name, n, version, next, err)
		}
	}
	// A page of many objects may be larger than one object may be.
	many := `{"metadata":{"resourceVersion":"7"},"items":[` + strings.Repeat(`{"status":{"podIP":"`+strings.Repeat("x", 1<<20)+`"}},`, 5) + `{}]}`
	n := 0
	if _, _, err := decodeList(strings.NewReader(many), func(*item, error) error { n++; return nil }); n != 6 || err != nil {
		t.Errorf("%d items, %v", n, err)
	}
	stop := errors.New("stop")
	if _, _, err := decodeList(strings.NewReader(`{"items":[{}]}`), func(*item, error) error { return stop }); !errors.Is(err, stop) {
		t.Error(err)
	}
}

func FuzzDecodeList(f *testing.F) {
	f.Add([]byte(`{"kind":"PodList","metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a","uid":"b"},"status":{"podIPs":[{"ip":"10.0.0.1"}]}}]}`))
	f.Add([]byte(`{"items":[{"spec":{"ports":[{"port":80,"protocol":"UDP"}],"clusterIPs":["fd00::1"]}}],"metadata":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		x := NewIndex(4, nil)
		decodeList(strings.NewReader(string(b)), func(it *item, err error) error {
			for k := range kinds {
				if o, e := it.object(k); err == nil && e == nil {
					x.Apply(set(o))
				}
			}
			return nil
		})
		if x.count > 4 {
			t.Fatal(x.count)
		}
	})
}

func FuzzEvent(f *testing.F) {
	f.Add([]byte(`{"type":"ADDED","object":{"metadata":{"name":"a","uid":"b"}}}`))
	f.Add([]byte(`{"type":"ERROR","object":{"code":410}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		src := &Source{cfg: Config{Notify: func(bool, string) {}}}
		out := make(chan []Change, 1)
		follower := follower{s: src, out: out}
		var e event
		if json.Unmarshal(b, &e) == nil {
			follower.event(t.Context(), &e)
		}
	})
}

func FuzzKubeconfig(f *testing.F) {
	f.Add([]byte(kubeconfigFile))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := parseKubeconfig(b, "/nonexistent"); err == nil && a.server == nil {
			t.Fatal("no server, and no error")
		}
	})
}

// FuzzBeginning: an event that is too long ends anywhere.
func FuzzBeginning(f *testing.F) {
	f.Add([]byte(`{"type":"DELETED","object":{"kind":"Pod","metadata":{"name":"a","uid":"b","annotations":{"x":"yyyyyy`))
	f.Fuzz(func(t *testing.T, b []byte) { beginning(b) })
}

func TestBeginning(t *testing.T) {
	const text = `{"type":"DELETED","object":{"kind":"Pod","spec":{"uid":"no"},"metadata":{"name":"a","uid":"b","annotations":{"x":"yy`
	for n := range len(text) {
		kind, uid := beginning([]byte(text[:n]))
		if wantKind, wantUID := n >= 17, n >= strings.Index(text, `"b"`)+3; (kind == "DELETED") != wantKind || (uid == "b") != wantUID {
			t.Errorf("%s: %q %q", text[:n], kind, uid)
		}
	}
}
