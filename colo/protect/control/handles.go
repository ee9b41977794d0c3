package control

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo/protect/watch"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/wait"
)

// Handles says at which addresses a job can be steered and watched. The zero Handles has
// none.
type Handles struct {
	// QMP is the address of the monitor, as qmp.Listen takes it: unix:PATH or HOST:PORT.
	// Empty: there is none. Whoever can connect may do all that the monitor can.
	QMP string
	// HTTP is the address of the page, as watch.Listen takes it: a port alone is on
	// the loopback interface. Empty: there is none.
	HTTP string
	// HTTPControl gives the page its buttons.
	HTTPControl bool
	// Hosts are further names of the page; see watch.Config.
	Hosts []string
}

// Flags adds the flags -qmp, -http and -http-control, and returns what they set. A word that
// is no address at first sight is refused: one for -qmp without a colon and a slash, and one
// for -http without a port's number.
func Flags(f *flag.FlagSet) *Handles {
	h := new(Handles)
	f.Func("qmp", "serve a QMP monitor at `unix:PATH|HOST:PORT`", func(addr string) error {
		if addr != "" && !strings.ContainsAny(addr, ":/") { // qmp.Listen would make a socket of that name here
			return errors.New("want unix:PATH or HOST:PORT")
		}
		h.QMP = addr
		return nil
	})
	f.Func("http", "serve a page to watch at `[HOST:]PORT`", func(addr string) error {
		_, err := strconv.ParseUint(addr[strings.LastIndexByte(addr, ':')+1:], 10, 16)
		if addr != "" && err != nil {
			return errors.New("want [HOST:]PORT")
		}
		h.HTTP = addr
		return nil
	})
	f.BoolVar(&h.HTTPControl, "http-control", false, "the page has buttons, too")
	return h
}

// Validate says what does not go together: buttons without a page. Run does so before it
// begins; a program does beforehand, to tell a wrong command line from what fails later.
func (h *Handles) Validate() error {
	if h.HTTPControl && h.HTTP == "" {
		return errors.New("-http-control is for the page of -http, which is not given")
	}
	return nil
}

// The names of the handles for Config.Listening and in the log.
const (
	HandleMonitor = "monitor"
	HandlePage    = "page"
)

// Runner is a job that Run can run: a [protect.Job].
type Runner interface {
	Job
	Run(ctx context.Context) error
}

// Run runs a job and serves its handles for as long as it runs; it returns what
// the job's Run returns. What Validate refuses, and an address that cannot be listened at, is an error before
// the job begins. A handle that fails later is logged, and does not end the job.
// What it has started has ended when it returns.
func (h *Handles) Run(ctx context.Context, job Runner, cfg Config) error {
	if err := h.Validate(); err != nil {
		return fmt.Errorf("control: %w", err)
	}
	serve, err := h.open(job, cfg)
	if err != nil {
		return err
	}
	with, end := context.WithCancelCause(context.WithoutCancel(ctx))
	var group sync.WaitGroup
	for _, s := range serve {
		group.Go(func() {
			if err := s.run(with); with.Err() == nil && cfg.Logger != nil {
				cfg.Logger.Error("a handle has failed", "handle", s.name, "guest", job.Query().Guest, "error", err)
			}
		})
	}
	if cfg.Listening != nil {
		for _, s := range serve {
			cfg.Listening(s.name, s.address)
		}
	}
	err = job.Run(ctx)
	end(errOver)
	group.Wait()
	return err
}

var errOver = errors.New("the job is over")

// served is one handle: run serves it until the context ends, close takes the place
// of run where it was never called.
type served struct {
	name    string
	address string
	run     func(context.Context) error
	close   func()
}

func (h *Handles) open(job Job, cfg Config) (all []served, err error) {
	defer func() {
		if err != nil {
			for _, s := range all {
				s.close()
			}
			all = nil
		}
	}()
	if h.QMP != "" {
		l, err := qmp.Listen(h.QMP)
		if err != nil {
			return all, fmt.Errorf("control: monitor: %w", err)
		}
		m := NewMonitor(job, cfg)
		all = append(all, served{HandleMonitor, monitorAddress(l), func(ctx context.Context) error {
			defer m.Close()
			return m.Server().Serve(ctx, l)
		}, func() { l.Close(); m.Close() }})
	}
	if h.HTTP != "" {
		l, err := watch.Listen(h.HTTP)
		if err != nil {
			return all, fmt.Errorf("control: page: %w", err)
		}
		page := watch.New(watch.Config{Job: job, Events: cfg.Events, Control: h.HTTPControl, Hosts: slices.Clone(h.Hosts), Metrics: cfg.Metrics, Logger: cfg.Logger})
		url := "http://" + l.Addr().String() + "/"
		if cfg.Logger != nil {
			cfg.Logger.Info("a page to watch", "guest", job.Query().Guest, "url", url, "control", h.HTTPControl)
		}
		all = append(all, served{HandlePage, url, func(ctx context.Context) error { return servePage(ctx, l, page) }, func() { l.Close() }})
	}
	return all, nil
}

// monitorAddress returns the address of a listener in the form that qmp.Listen takes.
func monitorAddress(l net.Listener) string {
	a := l.Addr()
	if a.Network() == "unix" {
		return "unix:" + a.String()
	}
	return a.String()
}

// servePage serves a page until ctx ends; requests under way are given a moment. Whoever has
// connected and is still asking, or says nothing, does not hold the host's end up.
func servePage(ctx context.Context, l net.Listener, page *watch.Page) error {
	var busy atomic.Int64 // requests that came whole and are being answered
	answering := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		busy.Add(1)
		defer busy.Add(-1)
		page.ServeHTTP(w, r)
	})
	server := &http.Server{Handler: answering, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	var group sync.WaitGroup
	with, end := context.WithCancel(ctx)
	group.Go(func() { page.Run(with) })
	failed := make(chan error, 1)
	group.Go(func() { failed <- server.Serve(l) })
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	end() // ends the requests of browsers that watch
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 15*time.Second)
	defer cancel()
	group.Go(func() {
		for busy.Load() > 0 && wait.For(grace, 10*time.Millisecond) == nil {
		}
		wait.For(grace, 500*time.Millisecond) // the last answer is on its way
		cancel()
	})
	if server.Shutdown(grace) != nil {
		server.Close()
	}
	cancel()
	group.Wait()
	return err
}
