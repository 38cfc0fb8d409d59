package main

import (
	"context"
	"strings"
	"testing"
	"time"
)

// within returns the records of a container, by its id, at either end.
func within(recs []jsonRecord, id string) (ends []*jsonEnd) {
	for i := range recs {
		for _, e := range []*jsonEnd{recs[i].SourceEnd, recs[i].DestEnd} {
			if e != nil && e.Container != nil && e.Container.ID == id {
				ends = append(ends, e)
			}
		}
	}
	return ends
}

// TestContainerd: plain containers, pods, and a pod on the host's network, with their names, images and labels.
func TestContainerd(t *testing.T) {
	n := newNode(t)
	oci, _ := image(t)
	c := startContainerd(n, "", 211, oci)
	c.run("shop", "run", "-d", "--label", "app=web", "--label", "team=a", podImage, "older", "/bin/pod", "-serve", "7000", "-for", "1h")
	r := runExporter(t, "--metrics", "none", "--active-timeout", "1s", "--containerd", c.socket, "--docker", "none", "--podman", "none", "--cri", "none", "--labels", "app,tier")
	ctx := context.Background()
	a, err := c.runPod(ctx, "server", false, map[string]string{"app": "shop", "tier": "back"}, "/bin/pod", "-serve", "7000", "-for", "1h")
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.runPod(ctx, "client", false, map[string]string{"app": "shop"}, "/bin/pod", "-for", "1h", a.ip+":7000")
	if err != nil {
		t.Fatal(err)
	}
	h, err := c.runPod(ctx, "onhost", true, nil, "/bin/pod", "-for", "1h", a.ip+":7000")
	if err != nil {
		t.Fatal(err)
	}
	// Two tenths of a second.
	c.run("shop", "run", "--rm", "--net-host", "--label", "app=brief", podImage, "brief", "/bin/pod", "-for", "200ms", a.ip+":7000")
	c.run("shop", "task", "exec", "--exec-id", "x", "older", "/bin/pod", "127.0.0.1:7000")
	time.Sleep(1500 * time.Millisecond)
	r.stop()
	recs := r.json()
	for _, tc := range []struct {
		id                                       string
		name, image, pod, namespace, uid, labels string
		least                                    int
	}{
		{"older", "older", podImage, "", "", "", "app=web", 2},
		{a.container, "main", podImage, "server", "tests", a.uid, "app=shop,tier=back", 6},
		{b.container, "main", podImage, "client", "tests", b.uid, "app=shop", 2},
		{h.container, "main", podImage, "onhost", "tests", h.uid, "", 2},
		{"brief", "brief", podImage, "", "", "", "app=brief", 2},
	} {
		ends := within(recs, tc.id)
		if len(ends) < tc.least {
			t.Errorf("%s: %d ends of records, want at least %d", tc.name, len(ends), tc.least)
		}
		want := jsonContainer{tc.id, tc.name, tc.image, "containerd", tc.pod, tc.namespace, tc.uid, tc.labels}
		for _, e := range ends {
			if *e.Container != want {
				t.Errorf("%+v, want %+v", *e.Container, want)
			}
		}
	}
	if t.Failed() {
		t.Log(r.errs.String())
		for _, j := range recs {
			if (j.SourceEnd != nil && strings.HasSuffix(j.SourceEnd.Path, "/pod")) || (j.DestEnd != nil && strings.HasSuffix(j.DestEnd.Path, "/pod")) {
				t.Logf("%s %v:%d %v:%d %+v %+v", j.Protocol, j.Source, j.SourcePort, j.Dest, j.DestPort, j.SourceEnd, j.DestEnd)
			}
		}
	}
}
