package kube

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// fake is an API server as far as it concerns clients that list and watch: resource versions, pages, bookmarks, field selectors, tokens, RBAC, and a
// memory of events that ends somewhere. What it answers follows what kube-apiserver 1.34 was seen to.
type fake struct {
	*httptest.Server
	mu      sync.Mutex
	changed *sync.Cond
	version int
	objects map[string][]object // by resource
	log     map[string][]logged
	oldest  map[string]int // watches from before are gone
	asked   []*url.URL

	token    string          // that is right; empty: anybody
	refuse   map[string]bool // "list pods": 403
	bookmark bool            // after every event
	// before, if set, may answer a request itself, and then returns true.
	before func(w http.ResponseWriter, r *http.Request) bool
}

type object map[string]any

type logged struct {
	version int
	kind    string
	object  object
}

func newFake(t *testing.T) *fake {
	f := &fake{version: 100, objects: map[string][]object{}, log: map[string][]logged{}, oldest: map[string]int{}, refuse: map[string]bool{}}
	f.changed = sync.NewCond(&f.mu)
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	f.EnableHTTP2 = true
	f.Config.ErrorLog = log.New(io.Discard, "", 0) // connections are cut on purpose
	f.StartTLS()
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

func pod(name, node string, ips ...string) object {
	var list []any
	for _, ip := range ips {
		list = append(list, object{"ip": ip})
	}
	status := object{"phase": "Running", "podIPs": list, "conditions": []any{object{"type": "Ready", "status": "True"}}}
	if len(ips) > 0 {
		status["podIP"] = ips[0]
	}
	return object{
		"metadata": object{"name": name, "namespace": "shop", "uid": "uid-of-" + name, "labels": object{"app": name}, "managedFields": []any{object{"manager": "kubelet"}}},
		"spec":     object{"nodeName": node, "containers": []any{object{"name": "c", "ports": []any{object{"containerPort": 80}}}}},
		"status":   status,
	}
}

// put adds or replaces an object, by its uid.
func (f *fake) put(resource string, o object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	uid := o["metadata"].(object)["uid"]
	i := slices.IndexFunc(f.objects[resource], func(p object) bool { return p["metadata"].(object)["uid"] == uid })
	kind := "MODIFIED"
	f.version++
	o["metadata"].(object)["resourceVersion"] = strconv.Itoa(f.version)
	if i < 0 {
		kind = "ADDED"
		f.objects[resource] = append(f.objects[resource], o)
	} else {
		f.objects[resource][i] = o
	}
	f.log[resource] = append(f.log[resource], logged{f.version, kind, o})
	f.changed.Broadcast()
}

func (f *fake) remove(resource, uid string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[resource] = slices.DeleteFunc(f.objects[resource], func(o object) bool {
		if o["metadata"].(object)["uid"] != uid {
			return false
		}
		f.version++
		gone := object{}
		for k, v := range o {
			gone[k] = v
		}
		meta := object{}
		for k, v := range o["metadata"].(object) {
			meta[k] = v
		}
		meta["resourceVersion"] = strconv.Itoa(f.version)
		gone["metadata"] = meta
		f.log[resource] = append(f.log[resource], logged{f.version, "DELETED", gone})
		return true
	})
	f.changed.Broadcast()
}

// forget ends the memory of events: watches from before now are gone.
func (f *fake) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.version++
	for _, r := range kindNames {
		f.oldest[r] = f.version
		f.log[r] = nil
	}
}

// cut ends every connection.
func (f *fake) cut() { f.CloseClientConnections() }

func (f *fake) requests() []*url.URL {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

func problem(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code})
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	resource := strings.TrimPrefix(r.URL.Path, "/api/v1/")
	f.mu.Lock()
	f.asked = append(f.asked, r.URL)
	token, before := f.token, f.before
	verb := "list"
	if r.URL.Query().Get("watch") != "" {
		verb = "watch"
	}
	refused := f.refuse[verb+" "+resource]
	f.mu.Unlock()
	switch {
	case token != "" && r.Header.Get("Authorization") != "Bearer "+token:
		problem(w, 401, "Unauthorized", "Unauthorized")
	case refused:
		problem(w, 403, "Forbidden", fmt.Sprintf("%s is forbidden: User \"system:serviceaccount:x:y\" cannot %s resource %q in API group \"\" at the cluster scope", resource, verb, resource))
	case before != nil && before(w, r):
	case verb == "watch":
		f.watch(w, r, resource)
	default:
		f.list(w, r, resource)
	}
}

// selected applies a field selector.
func selected(o object, selector string) bool {
	for s := range strings.SplitSeq(selector, ",") {
		var got any
		status, _ := o["status"].(object)
		spec, _ := o["spec"].(object)
		field, value, _ := strings.Cut(s, "=")
		switch strings.TrimSuffix(field, "!") {
		case "status.phase":
			got = status["phase"]
		case "spec.nodeName":
			got = spec["nodeName"]
		default:
			continue
		}
		if (got == value) == strings.HasSuffix(field, "!") {
			return false
		}
	}
	return true
}

func (f *fake) list(w http.ResponseWriter, r *http.Request, resource string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := r.URL.Query()
	version, from := f.version, 0
	if c := q.Get("continue"); c != "" {
		b, _ := base64.StdEncoding.DecodeString(c)
		fmt.Sscanf(string(b), "%d %d", &version, &from)
		if version < f.oldest[resource] {
			problem(w, 410, "Expired", "The provided continue parameter is too old to display a consistent list result.")
			return
		}
	}
	limit, _ := strconv.Atoi(q.Get("limit"))
	items := []any{}
	meta := object{"resourceVersion": strconv.Itoa(version)}
	for i, o := range f.objects[resource][from:] {
		if limit > 0 && len(items) == limit {
			meta["continue"] = base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%d %d", version, from+i))
			break
		}
		if selected(o, q.Get("fieldSelector")) {
			items = append(items, o)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	// The order of the fields is kube-apiserver's.
	b, _ := json.Marshal(items)
	m, _ := json.Marshal(meta)
	fmt.Fprintf(w, `{"kind":"List","apiVersion":"v1","metadata":%s,"items":%s}`, m, b)
}

func (f *fake) watch(w http.ResponseWriter, r *http.Request, resource string) {
	q := r.URL.Query()
	version, _ := strconv.Atoi(q.Get("resourceVersion"))
	seconds, _ := strconv.Atoi(q.Get("timeoutSeconds"))
	until := time.Now().Add(time.Duration(seconds) * time.Second)
	stop := time.AfterFunc(time.Until(until), f.changed.Broadcast)
	defer stop.Stop()
	defer contextBroadcast(r, f.changed)()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(200)
	w.(http.Flusher).Flush()
	e := json.NewEncoder(w)
	f.mu.Lock()
	defer f.mu.Unlock()
	for r.Context().Err() == nil && time.Now().Before(until) {
		if version < f.oldest[resource] {
			e.Encode(object{"type": "ERROR", "object": object{"kind": "Status", "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410}})
			return
		}
		for _, l := range f.log[resource] {
			if l.version <= version {
				continue
			}
			version = l.version
			if !selected(l.object, q.Get("fieldSelector")) {
				l.kind = "DELETED" // it left the selection
			}
			e.Encode(struct { // the order of the fields is kube-apiserver's
				Type   string `json:"type"`
				Object object `json:"object"`
			}{l.kind, l.object})
			if f.bookmark && q.Get("allowWatchBookmarks") == "true" {
				f.version += 10
				version = f.version
				e.Encode(object{"type": "BOOKMARK", "object": object{"kind": "Pod", "metadata": object{"resourceVersion": strconv.Itoa(version)}}})
			}
			break
		}
		w.(http.Flusher).Flush()
		if i := slices.IndexFunc(f.log[resource], func(l logged) bool { return l.version > version }); i < 0 {
			f.changed.Wait()
		}
	}
}

// contextBroadcast wakes those who wait when a request ends.
func contextBroadcast(r *http.Request, c *sync.Cond) func() {
	done := make(chan struct{})
	go func() { // ends with the request
		select {
		case <-r.Context().Done():
			c.L.Lock() // so that nobody is between a look and a wait
			c.Broadcast()
			c.L.Unlock()
		case <-done:
		}
	}()
	return func() { close(done) }
}
