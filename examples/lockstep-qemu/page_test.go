package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/internal/socket"
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

// Whoever reaches the page sees how the guest is, and changes nothing.
func TestThePageTakesNoOrders(t *testing.T) {
	g := &page{role: "standby", status: func() any { return map[string]string{"guest": "db1"} }, metrics: func(*metrics.Set) {}}
	for _, method := range []string{"POST", "PUT", "PATCH", "DELETE"} {
		for _, path := range []string{"/", "/status", "/metrics", "/promote"} {
			w := httptest.NewRecorder()
			g.handler().ServeHTTP(w, httptest.NewRequest(method, path, strings.NewReader(`{"do":"promote"}`)))
			if w.Code != http.StatusMethodNotAllowed && w.Code != http.StatusNotFound {
				t.Errorf("%s %s: %d", method, path, w.Code)
			}
		}
	}
}

func TestAnAddressOfThePageIsOneAtFirstSight(t *testing.T) {
	for word, want := range map[string]string{"8080": "127.0.0.1:8080", ":0": "127.0.0.1:0", "[::1]:80": "[::1]:80", "": ""} {
		var o standbyOptions
		f := flag.NewFlagSet("standby", flag.ContinueOnError)
		f.SetOutput(io.Discard)
		o.flags(f)
		if err := f.Parse([]string{"-http", word}); err != nil || o.http != want {
			t.Errorf("%q: %v, and the page is to be at %q, not %q", word, err, o.http, want)
		}
	}
	for _, word := range []string{"foo", "localhost:", "localhost", "65536", "h:99999"} {
		var o standbyOptions
		f := flag.NewFlagSet("standby", flag.ContinueOnError)
		f.SetOutput(io.Discard)
		o.flags(f)
		if err := f.Parse([]string{"-http", word}); err == nil || !strings.Contains(err.Error(), "-http: want [HOST:]PORT") || o.http != "" {
			t.Errorf("%q: %v, and the page is to be at %q", word, err, o.http)
		}
	}
}

// Two standbys of one -state would leave their guests in the same files.
func TestADirectoryThatIsInUseIsRefused(t *testing.T) {
	dir := socket.Dir(t)
	l, _, err := listen(socketIn(dir, "standby"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, role := range []string{"standby", "relay"} {
		args := []string{role, "-listen", "127.0.0.1:0", "-state", dir}
		if role == "relay" {
			args = append(args, "-to", "127.0.0.1:1")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var said bytes.Buffer
		status := run(ctx, args, terminal{out: io.Discard, err: &said})
		cancel()
		if status != exitFailed || !strings.Contains(said.String(), "-state "+dir+": a standby or relay that runs has that") {
			t.Errorf("%s: status %d, it said %q", role, status, &said)
		}
	}
}

// What cannot be had is named by the flag that asks for it, since an address alone may be that of
// any of them.
func TestAPlaceThatCannotBeHadIsNamedByItsFlag(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken, dir := l.Addr().String(), t.TempDir()
	file, image := filepath.Join(dir, "file"), filepath.Join(dir, "image")
	for name, size := range map[string]int64{file: 1, image: 1 << 20} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(name, size); err != nil {
			t.Fatal(err)
		}
	}
	own := []string{"standby", "-listen", "127.0.0.1:0", "-state", dir}
	for _, c := range []struct {
		flag string
		args []string
	}{
		{"-listen", []string{"standby", "-state", dir, "-listen", taken}},
		{"-state", []string{"standby", "-listen", "127.0.0.1:0", "-state", file}},
		{"-control", append(own, "-insecure", "-control", taken)},
		{"-http", append(own, "-http", taken)},
		{"-nbd", append(own, "-disk", "d="+image, "-nbd", taken)},
		{"-disk d", append(own, "-disk", "d="+filepath.Join(dir, "none"), "-nbd", "127.0.0.1:0")},
		{"-tls", append(own, "-tls", filepath.Join(dir, "none"))},
		{"-to-tls", []string{"relay", "-listen", "127.0.0.1:0", "-state", dir, "-to", "h:1", "-to-tls", filepath.Join(dir, "none")}},
	} {
		var said bytes.Buffer
		if status := run(t.Context(), c.args, terminal{out: io.Discard, err: &said}); status == exitOK || !strings.Contains(said.String(), ": "+c.flag+": ") {
			t.Errorf("%s: status %d, it said %q", c.flag, status, &said)
		}
	}
}
