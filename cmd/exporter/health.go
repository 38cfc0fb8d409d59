package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serveMetrics answers on addr until ctx ends: /metrics, /healthz, /readyz, and /debug/pprof/ if profiling.
func serveMetrics(ctx context.Context, addr string, profiling bool, m *metrics, log *slog.Logger) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("--metrics %s: %w", addr, err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if !m.answers(r.Context()) {
			http.Error(w, "the cache loop does not answer", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !m.answers(r.Context()):
			http.Error(w, "the cache loop does not answer", http.StatusServiceUnavailable)
		case !m.passed():
			http.Error(w, "the first pass over all sockets is not over", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ready")
		}
	})
	if profiling {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	server := newMetricsServer(mux, profiling)
	go func() { // ends with ctx
		if err := server.Serve(newLimitedListener(l)); !errors.Is(err, http.ErrServerClosed) {
			log.Warn("metrics are not served any more", "reason", err)
		}
	}()
	context.AfterFunc(ctx, func() { server.Close() })
	log.Info("metrics are served", "url", "http://"+l.Addr().String()+"/metrics")
	return nil
}

// answers reports whether the cache loop, which everything passes, answers: if it does, the program works.
func (m *metrics) answers(ctx context.Context) bool {
	ask, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, ok := m.p.ask(ask)
	return ok
}

// passed reports whether the sockets that were there at the start have been read. A collector that is away does not make the program
// unready: it meters, and the records wait.
func (m *metrics) passed() bool {
	if m.ebpf != nil && m.ebpf.CanWalk() {
		return m.ebpf.Stats().Snapshots > 0
	}
	return m.netlink != nil && m.netlink.Stats().Passes > 0
}

// newMetricsServer holds no connection of a client that asks nothing, or reads nothing.
func newMetricsServer(h http.Handler, profiling bool) *http.Server {
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
	}
	if profiling {
		s.WriteTimeout = 2 * time.Minute // a profile takes as long as it is asked to
	}
	return s
}

// maxScrapers bounds the connections of the metrics server, and so the descriptors and the memory that clients can take.
const maxScrapers = 64

// limitedListener accepts a connection when fewer than maxScrapers are open; the others wait.
type limitedListener struct {
	net.Listener
	open   chan struct{}
	closed chan struct{}
	close  func() error
}

func newLimitedListener(l net.Listener) *limitedListener {
	closed := make(chan struct{})
	return &limitedListener{l, make(chan struct{}, maxScrapers), closed, sync.OnceValue(func() error { close(closed); return l.Close() })}
}

func (l *limitedListener) Close() error { return l.close() }

func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.open <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.open
		return nil, err
	}
	return &limitedConn{c, sync.OnceFunc(func() { <-l.open })}, nil
}

type limitedConn struct {
	net.Conn
	done func()
}

func (c *limitedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
