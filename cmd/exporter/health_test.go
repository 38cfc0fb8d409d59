package main

import (
	"net"
	"net/http"
	"testing"
	"time"
)

// TestMetricsServer: clients that connect and ask nothing take a bounded number of connections, and not for long: who
// asks is answered.
func TestMetricsServer(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newMetricsServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("ok")) }), false)
	if s.IdleTimeout == 0 || s.ReadTimeout == 0 || s.WriteTimeout == 0 || s.MaxHeaderBytes == 0 {
		t.Errorf("no bound: %+v", s)
	}
	limited := newLimitedListener(l)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(limited) }() // ends with Close
	var silent []net.Conn
	for range 3 * maxScrapers {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent = append(silent, c)
	}
	eventually(t, "the bound is reached", func() bool { return len(limited.open) == maxScrapers })
	answered := make(chan error, 1)
	go func() { // ends with the server
		resp, err := http.Get("http://" + l.Addr().String())
		if err == nil {
			resp.Body.Close()
		}
		answered <- err
	}()
	// The others leave their places, each set after its ReadTimeout.
	for _, c := range silent {
		c.SetReadDeadline(time.Now().Add(2 * patience()))
	}
	if n, err := silent[0].Read(make([]byte, 1)); n != 0 || isTimeout(err) {
		t.Errorf("the first is held: %d, %v", n, err)
	}
	for _, c := range silent[maxScrapers:] {
		c.Close()
	}
	if err := <-answered; err != nil {
		t.Error(err)
	}
	s.Close()
	if err := <-ended; err != http.ErrServerClosed {
		t.Error(err)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}
