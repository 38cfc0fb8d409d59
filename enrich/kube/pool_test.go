package kube

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/sockflow/sockflow/flowcache"
)

// TestPoolOfPods: 500 pods come and go over a pool of 20 addresses. What was spoken to at any time is named, when all are gone, as it was then: nobody's
// address is anybody's, and between the change at the server and its being known either is right.
func TestPoolOfPods(t *testing.T) {
	const pods, addresses, workers = 500, 20, 4
	f := newFake(t)
	c := follow(t, f, nil)
	c.eventually("it watches", func() bool { return c.src.Stats().Watches[Pod] > 0 })
	type sample struct {
		ip    string
		at    int64
		owner string // "": nobody, "?": it changes
	}
	var mu sync.Mutex
	owner := map[string]string{}
	var samples []sample
	take := func(ip string) {
		mu.Lock()
		samples = append(samples, sample{ip, flowcache.Now(), owner[ip]})
		mu.Unlock()
	}
	became := func(ip, name string) {
		mu.Lock()
		owner[ip] = name
		mu.Unlock()
	}
	var wg sync.WaitGroup
	for w := range workers {
		wg.Add(1)
		go func() { // ends with its pods
			defer wg.Done()
			for i := range pods / workers {
				ip := fmt.Sprintf("10.9.0.%d", w*addresses/workers+i%(addresses/workers)+1)
				p := pod(fmt.Sprintf("p%d-%d", w, i), "n1", ip)
				uid := p["metadata"].(object)["uid"].(string)
				name := p["metadata"].(object)["name"].(string)
				p["status"].(object)["startTime"] = time.Now().UTC().Format(time.RFC3339) // seconds, as the server has them
				known := func(want string) bool {
					for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
						if c.name(ip) == want {
							return true
						}
					}
					t.Errorf("%s is %q, want %q", ip, c.name(ip), want)
					return false
				}
				became(ip, "?")
				f.put("pods", p)
				if !known("shop/" + name + "@n1 ") {
					return
				}
				became(ip, name)
				take(ip)
				became(ip, "?")
				f.remove("pods", uid)
				if !known("@ ") {
					return
				}
				became(ip, "")
				take(ip)
			}
		}()
	}
	wg.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	right, empty := 0, 0
	for _, s := range samples {
		want := "@ "
		if s.owner != "" {
			want = s.owner + "@n1 "
		}
		switch got := c.index.at(s.ip, s.at, s.owner != ""); {
		case got != want:
			t.Errorf("%s at %d is %q, want %q", s.ip, s.at, got, want)
		case s.owner == "":
			empty++
		default:
			right++
		}
	}
	if right != pods || empty != pods {
		t.Errorf("%d right, %d of nobody, want %d each", right, empty, pods)
	}
	t.Logf("%d flows named as they were, %d to nobody; %+v", right, empty, c.index.Stats())
}
