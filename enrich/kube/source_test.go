package kube

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// cluster is a Source of a fake server with the Index that it fills.
type cluster struct {
	t *testing.T
	*fake
	token string // path
	src   *Source
	mu    sync.Mutex
	index *Index
	lines []string
}

func (c *cluster) told(ok bool, line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = append(c.lines, fmt.Sprint(ok, " ", line))
}

// said returns how many lines have both words.
func (c *cluster) said(a, b string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range c.lines {
		if strings.Contains(l, a) && strings.Contains(l, b) {
			n++
		}
	}
	return n
}

// follow starts a Source of f, with quick retries.
func follow(t *testing.T, f *fake, change func(*Config)) *cluster {
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}), 0o600)
	os.WriteFile(token, []byte("secret\n"), 0o600)
	c := &cluster{t: t, fake: f, token: token, index: NewIndex(0, nil)}
	cfg := Config{
		Server: f.URL, CAFile: ca, TokenFile: token, Notify: c.told,
		BackoffMin: 5 * time.Millisecond, BackoffMax: 20 * time.Millisecond, WatchTime: 10 * time.Second, Spread: -1,
	}
	if change != nil {
		change(&cfg)
	}
	src, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.src = src
	out := make(chan []Change)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Add(2)
	go func() { // ends with ctx
		defer wg.Done()
		src.Run(ctx, out)
		close(out)
	}()
	go func() { // ends with the source
		defer wg.Done()
		for changes := range out {
			c.mu.Lock()
			c.index.Apply(changes)
			c.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		cancel()
		ended := make(chan struct{})
		go func() { wg.Wait(); close(ended) }() // ends with the source
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Error("the source does not end")
		}
	})
	return c
}

// name is what the index says of an address.
func (c *cluster) name(ip string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := flowcache.Record{Start: flowcache.Now(), Key: flowcache.Key{Dst: addr(ip), DstPort: 80, Proto: 6}, Source: flowcache.End{Local: true}}
	c.index.Name(&r)
	s := ""
	if w := r.Dest.Container; w != nil {
		s = w.PodNamespace + "/" + w.PodName
	}
	return s + "@" + r.Dest.Node + " " + r.Dest.Service
}

func (c *cluster) eventually(what string, f func() bool) {
	c.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if f() {
			return
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t.Fatalf("not within 10 s: %s\n%+v\n%+v\n%q", what, c.src.Stats(), c.index.Stats(), c.lines)
}

func (c *cluster) becomes(ip, want string) {
	c.t.Helper()
	c.eventually(ip+" is "+want, func() bool { return c.name(ip) == want })
}

func TestFollow(t *testing.T) {
	f := newFake(t)
	for i := range 1203 { // three pages
		f.put("pods", pod(fmt.Sprintf("p%d", i), "n1", fmt.Sprintf("10.1.%d.%d", i/250, i%250)))
	}
	f.put("services", object{
		"metadata": object{"name": "web", "namespace": "shop", "uid": "s1"},
		"spec":     object{"clusterIP": "10.96.0.10", "clusterIPs": []any{"10.96.0.10", "fd00::a"}, "ports": []any{object{"port": 80, "targetPort": "http"}}},
	})
	f.put("nodes", object{
		"metadata": object{"name": "n1", "uid": "node1"},
		"status":   object{"addresses": []any{object{"type": "InternalIP", "address": "192.168.0.1"}, object{"type": "Hostname", "address": "n1"}}},
	})
	c := follow(t, f, nil)
	c.becomes("10.1.4.202", "shop/p1202@n1 ")
	c.becomes("10.1.0.0", "shop/p0@n1 ")
	c.becomes("10.96.0.10", "@ shop/web")
	c.becomes("fd00::a", "@ shop/web")
	c.becomes("192.168.0.1", "@n1 ")
	// The watch reports changes.
	f.put("pods", pod("late", "n2"))
	f.put("pods", pod("late", "n2", "10.2.0.1", "fd00:2::1"))
	c.becomes("10.2.0.1", "shop/late@n2 ")
	c.becomes("fd00:2::1", "shop/late@n2 ")
	// Its address is free when it has ended, and another pod's after that.
	ended := pod("late", "n2", "10.2.0.1")
	ended["status"].(object)["phase"] = "Succeeded"
	f.put("pods", ended)
	c.becomes("10.2.0.1", "@ ")
	f.put("pods", pod("next", "n3", "10.2.0.1"))
	c.becomes("10.2.0.1", "shop/next@n3 ")
	f.remove("pods", "uid-of-late")
	f.put("pods", pod("mark", "n3", "10.2.0.9"))
	c.becomes("10.2.0.9", "shop/mark@n3 ")
	c.becomes("10.2.0.1", "shop/next@n3 ")
	f.remove("pods", "uid-of-next")
	c.becomes("10.2.0.1", "@ ")
	// A pod in its node's network has no address of its own.
	host := pod("proxy", "n1", "192.168.0.1")
	host["spec"].(object)["hostNetwork"] = true
	f.put("pods", host)
	f.put("pods", pod("mark", "n4", "10.2.0.9"))
	c.becomes("10.2.0.9", "shop/mark@n4 ")
	c.becomes("192.168.0.1", "@n1 ")
	if st := c.src.Stats(); st.Lists != [kinds]uint64{1, 1, 1} || st.Failed != [kinds]uint64{} || c.said("", "") != 0 {
		t.Errorf("%+v %q", st, c.lines)
	}
}

func TestNodeScope(t *testing.T) {
	f := newFake(t)
	f.put("pods", pod("here", "n1", "10.1.0.1"))
	f.put("pods", pod("there", "n2", "10.1.0.2"))
	c := follow(t, f, func(cfg *Config) { cfg.Node = "n1" })
	c.becomes("10.1.0.1", "shop/here@n1 ")
	f.put("pods", pod("there too", "n2", "10.1.0.3"))
	f.put("pods", pod("here too", "n1", "10.1.0.4"))
	c.becomes("10.1.0.4", "shop/here too@n1 ")
	if c.name("10.1.0.2") != "@ " || c.name("10.1.0.3") != "@ " {
		t.Error("pods of other nodes are known")
	}
}

// TestGone: a new list shows changes whose events were not received and which the server no longer remembers.
func TestGone(t *testing.T) {
	f := newFake(t)
	f.put("pods", pod("a", "n1", "10.1.0.1"))
	c := follow(t, f, nil)
	c.becomes("10.1.0.1", "shop/a@n1 ")
	f.mu.Lock()
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		http.Error(w, "", http.StatusServiceUnavailable)
		return true
	}
	f.mu.Unlock()
	f.cut()
	f.remove("pods", "uid-of-a")
	f.put("pods", pod("b", "n1", "10.1.0.2"))
	f.forget()
	c.eventually("it fails", func() bool { return c.src.Stats().Failed[Pod] > 1 })
	time.Sleep(50 * time.Millisecond) // and fails again, which is not reported
	if c.name("10.1.0.1") != "shop/a@n1 " {
		t.Error("names are forgotten while the server is away")
	}
	f.mu.Lock()
	f.before = nil
	f.mu.Unlock()
	c.becomes("10.1.0.2", "shop/b@n1 ")
	c.becomes("10.1.0.1", "@ ")
	c.eventually("it says so", func() bool { return c.said("true kubernetes at", "again") == 1 })
	if n := c.said("false kubernetes at", "cannot be read"); n != 1 {
		t.Errorf("told %d times: %q", n, c.lines)
	}
	if st := c.src.Stats(); st.Gone[Pod] == 0 || st.Lists[Pod] != 2 || st.Failed[Pod] < 2 {
		t.Errorf("%+v", st)
	}
}

// TestGoneInList: a list of several pages whose next page is too old begins anew.
func TestGoneInList(t *testing.T) {
	f := newFake(t)
	for i := range 700 {
		f.put("pods", pod(fmt.Sprintf("p%d", i), "n1", fmt.Sprintf("10.1.%d.%d", i/250, i%250)))
	}
	n := 0
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("continue") != "" {
			if n++; n == 1 {
				f.forget()
			}
		}
		return false
	}
	c := follow(t, f, nil)
	c.becomes("10.1.2.199", "shop/p699@n1 ")
	if st := c.src.Stats(); st.Gone[Pod] != 1 || st.Lists[Pod] != 2 {
		t.Errorf("%+v", st)
	}
}

// TestBookmark: a watch goes on from where the server said that nothing was missed, not from the last event.
func TestBookmark(t *testing.T) {
	f := newFake(t)
	f.bookmark = true
	c := follow(t, f, nil)
	c.eventually("it watches", func() bool { return c.src.Stats().Watches[Pod] > 0 })
	f.put("pods", pod("a", "n1", "10.1.0.1"))
	c.becomes("10.1.0.1", "shop/a@n1 ")
	c.eventually("the bookmark is read", func() bool { return c.src.Stats().Bookmarks[Pod] > 0 })
	f.mu.Lock()
	version := f.version
	f.mu.Unlock()
	f.forget()
	f.mu.Lock()
	f.oldest["pods"] = version // just remembered
	f.mu.Unlock()
	before := c.src.Stats().Watches[Pod]
	f.cut()
	c.eventually("it watches again", func() bool { return c.src.Stats().Watches[Pod] > before })
	f.put("pods", pod("b", "n1", "10.1.0.2"))
	c.becomes("10.1.0.2", "shop/b@n1 ")
	if st := c.src.Stats(); st.Lists[Pod] != 1 || st.Gone[Pod] != 0 {
		t.Errorf("listed again: %+v", st)
	}
	if c.said("", "") != 0 {
		t.Errorf("a watch that broke off once is nothing to tell: %q", c.lines)
	}
}

// TestRefused: without the right to read one kind the others work; it is said once, and works when the right is given.
func TestRefused(t *testing.T) {
	f := newFake(t)
	f.token = "other"
	c := follow(t, f, nil)
	c.eventually("401 is told", func() bool { return c.said("false kubernetes pods", "Unauthorized") == 1 && c.said("false", "") == 3 })
	f.put("pods", pod("a", "n1", "10.1.0.1"))
	f.put("nodes", object{"metadata": object{"name": "n1", "uid": "1"}, "status": object{"addresses": []any{object{"address": "192.168.0.1"}}}})
	f.mu.Lock()
	f.token = "new"
	f.refuse["list pods"] = true
	f.mu.Unlock()
	os.WriteFile(c.token, []byte("new"), 0o600) // rotated
	c.becomes("192.168.0.1", "@n1 ")
	c.eventually("403 is counted", func() bool { return c.src.Stats().Refused[Pod] > 3 })
	if c.said("false kubernetes pods", "") != 1 || c.said("", "list and watch") != 3 || c.name("10.1.0.1") != "@ " {
		t.Errorf("%q", c.lines)
	}
	f.mu.Lock()
	f.refuse["list pods"], f.refuse["watch pods"] = false, true
	f.mu.Unlock()
	c.becomes("10.1.0.1", "shop/a@n1 ") // the list is better than nothing
	c.eventually("the watch is refused", func() bool { return c.said("false kubernetes pods", "cannot watch") == 1 })
	f.mu.Lock()
	f.refuse["watch pods"] = false
	f.mu.Unlock()
	f.put("pods", pod("b", "n1", "10.1.0.2"))
	c.becomes("10.1.0.2", "shop/b@n1 ")
	if st := c.src.Stats(); st.Lists[Node] == 0 || st.Refused[Pod] == 0 {
		t.Errorf("%+v", st)
	}
}

// TestGarbage: what is not as it should be costs that object, or a new attempt, and nothing else.
func TestGarbage(t *testing.T) {
	f := newFake(t)
	f.put("pods", pod("a", "n1", "10.1.0.1"))
	wrong := pod("wrong", "n1", "10.1.0.9")
	wrong["spec"] = "a string"
	f.put("pods", wrong)
	nameless := pod("nameless", "n1", "10.1.0.8")
	delete(nameless["metadata"].(object), "name")
	f.put("pods", nameless)
	f.put("services", object{"metadata": object{"name": "s", "namespace": "shop", "uid": "1"}, "spec": object{"clusterIP": "None", "ports": []any{object{"port": 70000}}}})
	answers := []string{
		`{"type":"ADDED","object":{"metadata":{"na`,
		`nonsense`, `[]`, `{"type":5}`, `{"type":"ADDED","object":[]}`, `{"type":"NEW","object":{}}`, "\x00\xff",
		`{"type":"ERROR","object":{"code":500,"message":"etcdserver: leader changed"}}`,
		`{"type":"ADDED","object":"` + strings.Repeat("x", maxObject+1<<17) + `"}`,
		``,
	}
	n := 0
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("watch") == "" || !strings.HasSuffix(r.URL.Path, "pods") {
			return false
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if n++; n > len(answers) {
			return false
		}
		w.Write([]byte(answers[n-1]))
		return true
	}
	c := follow(t, f, nil)
	c.becomes("10.1.0.1", "shop/a@n1 ")
	f.put("pods", pod("b", "n1", "10.1.0.2"))
	c.becomes("10.1.0.2", "shop/b@n1 ")
	if st := c.src.Stats(); st.Malformed[Pod] < 4 || st.Malformed[Service] != 1 || st.Lists[Pod] != 1 || st.Failed[Pod] < 6 {
		t.Errorf("%+v", st)
	}
	if n := c.said("false kubernetes at", ""); n == 0 || n > 4 {
		t.Errorf("told %d times: %q", n, c.lines)
	}
	for _, l := range c.lines {
		if len(l) > 500 || strings.ContainsAny(l, "\n\x00") {
			t.Errorf("%q", l)
		}
	}
}

// TestHangs: a server that does not answer is left when the program ends (which follow checks), and a list that never ends too.
func TestHangs(t *testing.T) {
	f := newFake(t)
	release := make(chan struct{})
	t.Cleanup(func() { close(release) })
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "services") {
			w.Write([]byte(`{"kind":"List","metadata":{"resourceVersion":"5"},"items":[`))
			w.(http.Flusher).Flush()
		}
		select {
		case <-release:
		case <-r.Context().Done():
		}
		return true
	}
	c := follow(t, f, nil)
	c.eventually("it asks", func() bool { return len(f.requests()) >= 3 })
}

// TestRetryAfter: too many requests are not answered by more.
func TestRetryAfter(t *testing.T) {
	f := newFake(t)
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Retry-After", "3600")
		problem(w, 429, "TooManyRequests", "too many requests")
		return true
	}
	c := follow(t, f, func(cfg *Config) { cfg.BackoffMax = time.Hour })
	c.eventually("it is told", func() bool { return c.said("too many requests", "") == 1 && len(f.requests()) == 3 })
	time.Sleep(100 * time.Millisecond)
	if n := len(f.requests()); n != 3 {
		t.Errorf("%d requests", n)
	}
}

// TestForgetful: a server that remembers nothing for long is not asked for everything once a second.
func TestForgetful(t *testing.T) {
	f := newFake(t)
	f.put("pods", pod("a", "n1", "10.1.0.1"))
	var mu sync.Mutex
	var lists []time.Time
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "pods") {
			return false
		}
		if r.URL.Query().Get("watch") == "" {
			mu.Lock()
			lists = append(lists, time.Now())
			mu.Unlock()
			return false
		}
		json.NewEncoder(w).Encode(object{"type": "ERROR", "object": object{"kind": "Status", "message": "too old", "reason": "Expired", "code": 410}})
		return true
	}
	const least, most = 5 * time.Millisecond, 640 * time.Millisecond
	c := follow(t, f, func(cfg *Config) { cfg.BackoffMin, cfg.BackoffMax = least, most })
	c.eventually("it lists", func() bool { mu.Lock(); defer mu.Unlock(); return len(lists) >= 8 })
	mu.Lock()
	waits := lists[7].Sub(lists[6])
	mu.Unlock()
	if waits < 64*least/2 { // doubled six times, less jitter
		t.Errorf("the eighth list %v after the seventh", waits)
	}
	if c.name("10.1.0.1") != "shop/a@n1 " {
		t.Error("names are forgotten")
	}
}

// TestDyingWatch: a watch that ends with every event costs no list, and names come.
func TestDyingWatch(t *testing.T) {
	f := newFake(t)
	f.bookmark = false
	c := follow(t, f, nil)
	c.eventually("it watches", func() bool { return c.src.Stats().Watches[Pod] > 0 })
	for i := range 20 {
		f.put("pods", pod(fmt.Sprint("p", i), "n1", fmt.Sprintf("10.1.0.%d", i+1)))
		c.becomes(fmt.Sprintf("10.1.0.%d", i+1), fmt.Sprintf("shop/p%d@n1 ", i))
		f.cut()
	}
	if st := c.src.Stats(); st.Lists[Pod] != 1 {
		t.Errorf("%+v", st)
	}
}

// TestFirstList: the first list is from the server's memory, and the one after it had forgotten is not.
func TestFirstList(t *testing.T) {
	f := newFake(t)
	c := follow(t, f, nil)
	c.eventually("it watches", func() bool { return c.src.Stats().Watches[Pod] > 0 })
	f.forget()
	f.cut()
	lists := func() (got []string) {
		for _, u := range f.requests() {
			if q := u.Query(); strings.HasSuffix(u.Path, "pods") && q.Get("watch") == "" {
				got = append(got, fmt.Sprintf("%q", q.Get("resourceVersion")))
			}
		}
		return got
	}
	c.eventually("it lists again", func() bool { return len(lists()) == 2 })
	if got := lists(); fmt.Sprint(got) != `["0" ""]` {
		t.Errorf("%v", got)
	}
}

// TestTooLargeAPod: a pod that is too long, in the list and in the watch, costs its own name alone.
func TestTooLargeAPod(t *testing.T) {
	huge := func(name, ip string) object {
		o := pod(name, "n1", ip)
		o["spec"].(object)["filler"] = strings.Repeat(`\"]}`, maxObject/4+1)
		return o
	}
	long := pod("long", "n1", "10.1.0.3") // of the size that etcd takes
	long["metadata"].(object)["annotations"] = object{"x": strings.Repeat("x", 1400<<10)}
	f := newFake(t)
	f.put("pods", pod("a", "n1", "10.1.0.1"))
	f.put("pods", huge("b", "10.1.0.2"))
	f.put("pods", long)
	c := follow(t, f, nil)
	c.becomes("10.1.0.3", "shop/long@n1 ")
	c.becomes("10.1.0.1", "shop/a@n1 ")
	f.put("pods", pod("grows", "n1", "10.1.0.4"))
	c.becomes("10.1.0.4", "shop/grows@n1 ")
	f.put("pods", huge("grows", "10.1.0.4"))
	f.put("pods", pod("c", "n1", "10.1.0.5"))
	c.becomes("10.1.0.5", "shop/c@n1 ")
	f.remove("pods", "uid-of-grows")
	c.becomes("10.1.0.4", "@ ")
	f.put("pods", pod("d", "n1", "10.1.0.6"))
	c.becomes("10.1.0.6", "shop/d@n1 ")
	if st := c.src.Stats(); st.Large[Pod] != 3 || st.Lists[Pod] != 1 || st.Failed[Pod] != 0 || c.said("too large", "pods") != 1 {
		t.Errorf("%+v %q", st, c.lines)
	}
}

// TestRotatedAuthority: the file of the authority is read again.
func TestRotatedAuthority(t *testing.T) {
	f := newFake(t)
	var ca string
	c := follow(t, f, func(cfg *Config) {
		ca = cfg.CAFile
		right, _ := os.ReadFile(ca)
		os.WriteFile(ca+".right", right, 0o600)
		os.WriteFile(ca, otherAuthority(t), 0o600)
	})
	f.put("pods", pod("a", "n1", "10.1.0.1"))
	c.eventually("it is not trusted", func() bool { return c.src.Stats().Failed[Pod] > 1 })
	os.WriteFile(ca, []byte("half of a file"), 0o600)
	failed := c.src.Stats().Failed[Pod]
	c.eventually("it is tried again", func() bool { return c.src.Stats().Failed[Pod] > failed+1 })
	os.Rename(ca+".right", ca)
	c.becomes("10.1.0.1", "shop/a@n1 ")
}

func otherAuthority(t *testing.T) []byte {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestWrongNode: that there is no such node is said, once, and that there is one now.
func TestWrongNode(t *testing.T) {
	f := newFake(t)
	f.put("nodes", object{"metadata": object{"name": "n1", "uid": "1"}, "status": object{"addresses": []any{object{"address": "192.168.0.1"}}}})
	c := follow(t, f, func(cfg *Config) { cfg.Node = "N1.example" })
	c.eventually("it is said", func() bool { return c.said("false kubernetes", `no node "N1.example"`) == 1 })
	f.forget()
	f.cut()
	c.eventually("it lists again", func() bool { return c.src.Stats().Watches[Node] > 1 && c.src.Stats().Lists[Node] == 2 })
	f.put("nodes", object{"metadata": object{"name": "N1.example", "uid": "2"}, "status": object{}})
	c.eventually("it is said", func() bool { return c.said("true kubernetes", `has the node "N1.example"`) == 1 })
	if n := c.said("no node", ""); n != 1 {
		t.Errorf("said %d times", n)
	}
}

// TestRelist: a list that is asked for comes, and shows what was left out.
func TestRelist(t *testing.T) {
	f := newFake(t)
	c := follow(t, f, nil)
	c.eventually("it watches", func() bool { return c.src.Stats().Watches[Pod] > 0 })
	c.src.Relist(Pod)
	c.src.Relist(Pod)
	c.eventually("it lists and watches", func() bool { return c.src.Stats().Lists[Pod] >= 2 && c.src.Stats().Watches[Pod] >= 2 })
	f.put("pods", pod("a", "n1", "10.1.0.1"))
	c.becomes("10.1.0.1", "shop/a@n1 ")
	if st := c.src.Stats(); st.Failed[Pod] != 0 || c.said("", "") != 0 {
		t.Errorf("%+v %q", st, c.lines)
	}
}

// TestMirrorPod: the object of a pod that kubelet has of a file names its UID in control groups; one that says so and is no node's does not.
func TestMirrorPod(t *testing.T) {
	mirror := func(name, hash, owner string) string {
		return `{"metadata":{"name":"` + name + `","uid":"u-` + name + `","annotations":{"kubernetes.io/config.mirror":"` + hash + `"},"ownerReferences":[{"kind":"` + owner + `"}]}}`
	}
	for text, want := range map[string]string{mirror("etcd", "abc", "Node"): "abc", mirror("evil", "abc", "ReplicaSet"): ""} {
		var it item
		if err := json.Unmarshal([]byte(text), &it); err != nil {
			t.Fatal(err)
		}
		if o, err := it.object(Pod); err != nil || o.Alias != want {
			t.Errorf("%s: %q %v", text, o.Alias, err)
		}
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]int{"": 0, "7": 7, "-7": 0, "x": 0, "Fri, 02 Jan 2026 03:04:35 GMT": 30, "Fri, 02 Jan 2026 03:04:00 GMT": 0} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: %d, want %d", header, got, want)
		}
	}
}
