package main

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/internal/trial"
)

// get returns what a page answers at a path.
func get(page, path string) (string, error) {
	c := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	a, err := c.Get(page + path)
	if err != nil {
		return "", err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err == nil && a.StatusCode != http.StatusOK {
		err = errors.New(a.Status)
	}
	return string(b), err
}

// pageOf wants a page to be that of a side, and returns the state that it shows.
func pageOf(t *testing.T, page, side string) string {
	t.Helper()
	b, err := get(page, "state")
	var s struct {
		Guest, State string
		Here         struct{ Host string }
		Actions      []any
	}
	if err = errors.Join(err, json.Unmarshal([]byte(b), &s)); err != nil {
		t.Fatalf("the page of %s: %v", side, err)
	}
	if s.Guest != machineType || s.Here.Host != side {
		t.Errorf("the page of %s is of %q on %q", side, s.Guest, s.Here.Host)
	}
	if m, err := get(page, "metrics"); err != nil || !strings.Contains(m, "\nlockstep_output_latency_seconds_count{") {
		t.Errorf("the metrics of %s: %v\n%s", side, err, m)
	}
	return s.State
}

// aloneConfig returns the configuration of host a, which has the guest and finds nobody to
// protect it. What the guest says is read and dropped.
func aloneConfig(t *testing.T) trial.SideConfig {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var heard sync.WaitGroup
	heard.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			heard.Go(func() {
				defer c.Close()
				io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { l.Close(); heard.Wait() })
	p := guest.Params{VCPUs: 1, Pages: 16, Touch: 2, Seed: 1}
	return trial.SideConfig{
		Side: "a", Backend: "sim", Guest: p, Memory: p.MemSize(), Client: l.Addr().String(), Mode: trial.ModeContinuous,
		Interval: 10 * time.Millisecond, EarlyResume: true,
		Listen: "127.0.0.1:0", Dial: "127.0.0.1:1", Arbiter: filepath.Join(t.TempDir(), "guest"), Start: true,
		Beat: time.Second, Lost: time.Minute, Term: time.Minute,
	}
}

// A host that protects has its handles from before its job begins until that has ended.
func TestAHostThatProtectsHasAMonitorAndAPage(t *testing.T) {
	cfg := aloneConfig(t)
	cfg.QMP, cfg.HTTP, cfg.HTTPControl = "127.0.0.1:0", "0", true
	in, orders := io.Pipe()
	reports, out := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := sideMain(in, out)
		out.Close()
		ended <- err
	}()
	go json.NewEncoder(orders).Encode(cfg)

	at := make(map[string]string)
	dec := json.NewDecoder(reports)
	for len(at) < 2 {
		var r struct{ Handle *trial.Handle }
		if err := dec.Decode(&r); err != nil {
			t.Fatal(err, <-ended)
		}
		if r.Handle != nil {
			at[r.Handle.Name] = r.Handle.Address
		}
	}
	go io.Copy(io.Discard, io.MultiReader(dec.Buffered(), reports))
	pageOf(t, at[control.HandlePage], "a")
	if b, err := get(at[control.HandlePage], ""); err != nil || !strings.Contains(b, "<dialog") {
		t.Errorf("the page has no buttons: %v", err)
	}
	c, err := qmp.Dial(t.Context(), at[control.HandleMonitor])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var s struct{ Host string }
	if err := c.Do(t.Context(), "query-protection", nil, &s); err != nil || s.Host != "a" {
		t.Errorf("the monitor is of %q: %v", s.Host, err)
	}
	orders.Close() // the parent has gone
	if err := <-ended; !errors.Is(err, trial.ErrOrphan) {
		t.Errorf("it ends with %v", err)
	}
	if _, err := get(at[control.HandlePage], "state"); err == nil {
		t.Error("the page is still there")
	}
}

// Which flows differ is said where somebody can see it, and costs nothing elsewhere.
func TestFlowsThatDifferAreToldWhereSomebodyWatches(t *testing.T) {
	var bus event.Bus
	for _, c := range []struct {
		cfg  trial.SideConfig
		want *event.Bus
	}{
		{trial.SideConfig{}, nil},
		{trial.SideConfig{HTTP: "0"}, &bus},
		{trial.SideConfig{QMP: "unix:m"}, &bus},
	} {
		if got := watched(c.cfg, &bus); got != c.want {
			t.Errorf("page %q, monitor %q: %p, want %p", c.cfg.HTTP, c.cfg.QMP, got, c.want)
		}
	}
}

func TestAnAddressThatASideCannotHaveIsToldInOneLineBeforeTheRun(t *testing.T) {
	page, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer page.Close()
	path := filepath.Join(socket.Dir(t), "m")
	monitor, err := net.Listen("unix", path+".b")
	if err != nil {
		t.Fatal(err)
	}
	defer monitor.Close()
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"-http", page.Addr().String()}, "lockstep: -http: the page of the side primary: "},
		{[]string{"-failovers", "1", "-qmp", "unix:" + path}, "lockstep: -qmp: the monitor of the side b: "},
	} {
		out, errs := program(t, 1, append(c.args, "-backend", "sim")...)
		if out != "" || !strings.HasPrefix(errs, c.want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: it printed %q, and said %q", c.args, out, errs)
		}
	}
}
