package control

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/socket"
)

func TestHandlesAreServedForAsLongAsTheJobRuns(t *testing.T) {
	dir := socket.Dir(t)
	f := flag.NewFlagSet("test", flag.ContinueOnError)
	h := Flags(f)
	if err := f.Parse([]string{"-qmp", "unix:" + filepath.Join(dir, "s"), "-http", "0", "-http-control"}); err != nil {
		t.Fatal(err)
	}
	j := newJob(protect.Alone)
	quit := make(chan struct{})
	done := make(chan error)
	type listening struct{ handle, address string }
	listens := make(chan listening, 10)
	go func() {
		done <- h.Run(t.Context(), j, Config{
			Events: new(event.Bus), Quit: func() { close(quit) },
			Listening: func(handle, address string) { listens <- listening{handle, address} },
			Metrics:   func(s *metrics.Set) { s.Add(metrics.Gauge, "lockstep_test", "Of the host.", 7) },
		})
	}()
	told := make(map[string]string)
	for range 2 {
		select {
		case l := <-listens:
			told[l.handle] = l.address
		case err := <-done:
			t.Fatalf("Run: %v", err)
		}
	}
	page := told[HandlePage]
	if told[HandleMonitor] != h.QMP || !strings.HasPrefix(page, "http://127.0.0.1:") || !strings.HasSuffix(page, "/") || len(told) != 2 {
		t.Fatalf("told of %q", told)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := qmp.Dial(ctx, h.QMP)
	if err != nil {
		t.Fatal(err)
	}
	if got := do(t, c, "query-name", nil); got != "map[name:db1]" {
		t.Error(got)
	}
	a, err := http.Get(page + "state")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(a.Body); err != nil || !bytes.Contains(b, []byte(`"state":"alone"`)) {
		t.Errorf("%s, %v", b, err)
	}
	a.Body.Close()
	if a, err = http.Get(page + "metrics"); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(a.Body); err != nil || !bytes.Contains(b, []byte("\nlockstep_test 7\n")) {
		t.Errorf("the host's own metrics are not among\n%s, %v", b, err)
	}
	a.Body.Close()
	// One who watches does not keep the job from ending.
	if a, err = http.Get(page + "live"); err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	if err := c.Do(ctx, "quit", nil, nil); err != nil {
		t.Error(err)
	}
	<-quit
	why := errors.New("enough")
	j.run <- why
	if err := <-done; err != why {
		t.Errorf("Run: %v", err)
	}
	if len(listens) > 0 {
		t.Errorf("told of %+v besides", <-listens)
	}
	if c, err := net.Dial("unix", filepath.Join(dir, "s")); err == nil {
		c.Close()
		t.Error("the monitor is still there")
	}
	c.Close()
	http.DefaultClient.CloseIdleConnections()
}

// A port 0 is one that is free, and the host is told which.
func TestAHostIsToldWhichPortsWereFree(t *testing.T) {
	j := newJob(protect.Alone)
	told := make(map[string]string)
	h := Handles{QMP: "tcp:127.0.0.1:0", HTTP: "0"}
	j.run <- nil
	if err := h.Run(t.Context(), j, Config{Listening: func(handle, address string) { told[handle] = address }}); err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(told[HandlePage])
	if err != nil {
		t.Fatal(err)
	}
	for handle, address := range map[string]string{HandleMonitor: told[HandleMonitor], HandlePage: u.Host} {
		if host, port, err := net.SplitHostPort(address); err != nil || host != "127.0.0.1" || port == "0" {
			t.Errorf("the %s is at %q", handle, address)
		}
	}
}

func TestButtonsWithoutAPageAreRefused(t *testing.T) {
	h := Handles{HTTPControl: true}
	j := newJob(protect.Alone)
	j.run <- errors.New("the job has run")
	if err := h.Run(t.Context(), j, Config{}); err == nil || !strings.Contains(err.Error(), "-http-control is for the page of -http") {
		t.Error(err)
	}
	for _, fine := range []Handles{{}, {HTTP: "0"}, {HTTP: "0", HTTPControl: true}} {
		if err := fine.Validate(); err != nil {
			t.Errorf("%+v: %v", fine, err)
		}
	}
}

func TestAWordThatIsNoAddressIsRefused(t *testing.T) {
	f := flag.NewFlagSet("vmm", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	h := Flags(f)
	for _, word := range []string{"what", "localhost:what", "localhost:", "65536"} {
		if err := f.Parse([]string{"-http", word}); err == nil || !strings.Contains(err.Error(), "want [HOST:]PORT") || h.HTTP != "" {
			t.Errorf("%v, and the page is to be at %q", err, h.HTTP)
		}
	}
	if err := f.Parse([]string{"-qmp", "what"}); err == nil || !strings.Contains(err.Error(), "want unix:PATH or HOST:PORT") || h.QMP != "" {
		t.Errorf("%v, and the monitor is to be at %q", err, h.QMP)
	}
	for _, addr := range []string{"8080", ":8080", "0", "localhost:0", "[::1]:8080", ""} {
		if err := f.Parse([]string{"-http", addr}); err != nil || h.HTTP != addr {
			t.Errorf("%v, and the page is to be at %q, not %q", err, h.HTTP, addr)
		}
	}
	for _, addr := range []string{"unix:m", "./m", "localhost:4444", "tcp:localhost:4444", ""} {
		if err := f.Parse([]string{"-qmp", addr}); err != nil || h.QMP != addr {
			t.Errorf("%v, and the monitor is to be at %q, not %q", err, h.QMP, addr)
		}
	}
}

func TestAnAddressThatIsTakenIsNoticedBeforeTheJobBegins(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	j := newJob(protect.Alone)
	path := filepath.Join(socket.Dir(t), "s")
	for _, h := range []Handles{{QMP: l.Addr().String()}, {QMP: "unix:" + path, HTTP: l.Addr().String()}} {
		if err := h.Run(t.Context(), j, Config{}); err == nil || !strings.Contains(err.Error(), "control: ") {
			t.Errorf("%+v: %v", h, err)
		}
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		t.Error("a monitor is left over")
	}
}
