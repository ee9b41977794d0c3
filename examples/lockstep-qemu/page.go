package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/rebind"
)

// page shows the state of a standby or a guardian over HTTP: as text at /, as JSON at
// /status, for Prometheus at /metrics. It takes no orders, and no other site can make a
// browser read it.
type page struct {
	role    string
	status  func() any
	metrics func(*metrics.Set)
}

// pageFlag adds the flag -http, whose text is about what is served there; "" is none.
func pageFlag(f *flag.FlagSet, addr *string, about string) {
	f.Func("http", about+" at `[HOST:]PORT`, for people at /, as JSON at /status, for Prometheus at /metrics; on loopback without HOST", func(s string) error {
		host, port, err := net.SplitHostPort(s)
		if err != nil {
			host, port = "", s
		}
		if _, err := strconv.ParseUint(port, 10, 16); err != nil && s != "" {
			return errors.New("want [HOST:]PORT")
		}
		if host == "" {
			host = "127.0.0.1"
		}
		if *addr = ""; s != "" {
			*addr = net.JoinHostPort(host, port)
		}
		return nil
	})
}

// begin serves the page at addr until ctx ends; all waits for that.
func (g *page) begin(ctx context.Context, all *sync.WaitGroup, addr string, p *printer) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return cli.Listening("-http", err)
	}
	p.say("watch       http://%v/, and /metrics there", l.Addr())
	p.object(map[string]string{"http": l.Addr().String()})
	server := &http.Server{Handler: rebind.Handler(g.handler()), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second,
		WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	all.Go(func() { server.Serve(newVisitors(ctx, l)) }) // until it is closed
	all.Go(func() {
		<-ctx.Done()
		server.Close()
	})
	return nil
}

func (g *page) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		text, err := json.Marshal(g.status())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Refresh", "2")
		sayStatus(&printer{terminal: terminal{out: w}}, g.role, text)
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(g.status())
	})
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		var s metrics.Set
		g.metrics(&s)
		var b bytes.Buffer
		if _, err := s.WriteTo(&b); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		w.Write(b.Bytes())
	})
	return mux
}

// truth returns a condition as the value of a metric.
func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
