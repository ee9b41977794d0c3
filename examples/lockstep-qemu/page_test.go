package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo/metrics"
)

// A browser on this host, or near it, may be lent a name by a site that then reads what
// is shown there.
func TestThePageAnswersNoNameThatASiteCanArrange(t *testing.T) {
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	g := &page{role: "standby", status: func() any { return map[string]string{"guest": "db1"} }, metrics: func(*metrics.Set) {}}
	if err := g.begin(ctx, &all, "127.0.0.1:0", &printer{terminal: terminal{out: &out, err: io.Discard}, json: true}); err != nil {
		t.Fatal(err)
	}
	var at struct{ HTTP string }
	if err := json.Unmarshal(out.Bytes(), &at); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	for _, path := range []string{"/", "/status", "/metrics"} {
		for host, want := range map[string]int{"": http.StatusOK, "localhost:80": http.StatusOK, "evil.example": http.StatusMisdirectedRequest} {
			r, err := http.NewRequestWithContext(ctx, "GET", "http://"+at.HTTP+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Host = host
			resp, err := http.DefaultTransport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s by the name %q: %s", path, host, resp.Status)
			}
		}
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}
