package runtimes

import (
	"encoding/json"
	"testing"
)

func TestCGroupOfSpec(t *testing.T) {
	for path, want := range map[string]string{
		"/shop/web":               "/shop/web",
		"/shop/web/":              "/shop/web",
		"":                        "",
		"shop/web":                "", // below the runtime's own control group, which nobody knows
		"system.slice:docker:abc": "/system.slice/docker-abc.scope",
		":runc:abc":               "/system.slice/runc-abc.scope",
		"kubepods-burstable-pod1.slice:cri-containerd:abc": "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-abc.scope",
		"machine.slice::x.slice":                           "/machine.slice/x.slice",
		"-.slice:a:b":                                      "/a-b.scope",
		"a:b:":                                             "",
	} {
		s := spec{cgroupsPath: path}
		if got := s.cgroup(); got != want {
			t.Errorf("%q: %q, want %q", path, got, want)
		}
	}
}

func TestParseSpec(t *testing.T) {
	const text = ` {"ociVersion":"1", "process":{"args":["a\"}","annotations"],"env":[]},"hooks":null,
	"annotations" : {"x":"\\", "io.kubernetes.cri.sandbox-id": "abc", "io.kubernetes.cri.image-name":"reg\u00e9/a:1"},"linux":{"seccomp":{"a":[1,2,{}]},"n":1,"cgroupsPath":"/a/b"}}`
	if got, want := parseSpec([]byte(text)), (spec{"abc", "regé/a:1", "/a/b"}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "{", "[]", `{"annotations":`, `{"annotations":{"io.kubernetes.cri.sandbox-id":7}}`, `{"linux":[]}`, `{"linux":"cgroupsPath"}`, "{}", `{"a" 1}`, `{"`} {
		if got := parseSpec([]byte(bad)); got != (spec{}) {
			t.Errorf("%s: %+v", bad, got)
		}
	}
}

// FuzzParseSpec compares with encoding/json, where that accepts it.
func FuzzParseSpec(f *testing.F) {
	f.Add([]byte(`{"annotations":{"io.kubernetes.cri.sandbox-id":"a"},"linux":{"cgroupsPath":"/a","x":[{"y":"}"}]}}`))
	f.Add([]byte(`{"linux":{"a":"\\"," ":{},"cgroupsPath":"\u0041"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		got := parseSpec(b)
		var all map[string]json.RawMessage
		if json.Unmarshal(b, &all) != nil {
			return
		}
		for _, part := range []struct{ object, name, got string }{
			{"annotations", annotationSandbox, got.sandbox}, {"annotations", annotationImage, got.image}, {"linux", "cgroupsPath", got.cgroupsPath},
		} {
			var object map[string]json.RawMessage
			var want string
			if json.Unmarshal(all[part.object], &object) == nil {
				json.Unmarshal(object[part.name], &want)
			}
			if part.got != want && part.got == "" && !duplicates(b) {
				t.Errorf("%s: %q, want %q", part.name, part.got, want)
			}
		}
	})
}

// duplicates reports whether an object may have a member twice, or a name with escapes: encoding/json takes the last, and reads escapes.
func duplicates(b []byte) bool {
	seen := map[string]bool{}
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' {
			return true
		}
		if b[i] == '"' {
			end := i + 1
			for end < len(b) && b[end] != '"' {
				end++
			}
			s := string(b[i:min(end+1, len(b))])
			if seen[s] {
				return true
			}
			seen[s] = true
			i = end
		}
	}
	return false
}

func FuzzParseSandbox(f *testing.F) {
	f.Add([]byte(`{"Version":"v1","Metadata":{"IP":"10.0.0.1","AdditionalIPs":["fd00::1"],"Config":{"linux":{"security_context":{"namespace_options":{"network":2}}}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, a := range parseSandbox(b) {
			if a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
				t.Errorf("%v", a.Netip())
			}
		}
	})
}

func TestParseSandbox(t *testing.T) {
	got := parseSandbox([]byte(`{"Version":"v1","Metadata":{"IP":"10.0.0.1","AdditionalIPs":["fd00::1","fe80::1","x"],"Config":{}}}`))
	if len(got) != 2 || got[0].Netip().String() != "10.0.0.1" || got[1].Netip().String() != "fd00::1" {
		t.Errorf("%v", got)
	}
	if got := parseSandbox([]byte(`{"Metadata":{"IP":"10.0.0.1","Config":{"linux":{"security_context":{"namespace_options":{"network":2}}}}}}`)); got != nil {
		t.Errorf("on the host's network: %v", got)
	}
}

func TestChoose(t *testing.T) {
	labels := map[string]string{"app": "web", "tier": "a,b", "other": "x"}
	if got := choose([]string{"tier", "none", "app"}, labels); got != "tier=a;b,app=web" {
		t.Errorf("%q", got)
	}
}
