package main

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate"
)

// fakeHost is a machine whose guest ends as the test wants.
type fakeHost struct {
	machine
	ends chan error
	runs int
}

func (h *fakeHost) Run(ctx context.Context) error {
	h.runs++
	select {
	case err := <-h.ends:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (h *fakeHost) Register(*vmstate.Registry) error { return nil }

func TestACheckpointBringsAnEndedGuestBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHost{ends: make(chan error)}
		g := newGuest()
		g.machine = h
		var reg vmstate.Registry
		if err := g.Register(&reg); err != nil {
			t.Fatal(err)
		}
		load := func() { // what a checkpoint does last
			if err := (*loaded)(g).PostLoad(1); err != nil {
				t.Fatal(err)
			}
		}
		decided := make(chan struct{})
		asked := 0
		done := make(chan error, 1)
		go func() {
			done <- g.run(context.Background(), func(ctx context.Context, how string) error {
				asked++
				select {
				case <-decided:
					return nil
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			})
		}()
		synctest.Wait()
		load() // of a guest that runs: it is none to come back to
		h.ends <- gokvmhost.ErrReset
		synctest.Wait()
		if h.runs != 1 || asked != 1 {
			t.Fatalf("a guest that has ended ran %d times, asked %d times", h.runs, asked)
		}
		load()
		synctest.Wait()
		if h.runs != 2 {
			t.Errorf("after the checkpoint it ran %d times", h.runs)
		}
		h.ends <- gokvmhost.ErrPowerOff
		synctest.Wait()
		close(decided)
		if err := <-done; err != nil || h.runs != 2 {
			t.Errorf("got %v after %d runs", err, h.runs)
		}
	})
}

func TestAGuestThatFailsIsNotAskedAbout(t *testing.T) {
	h := &fakeHost{ends: make(chan error, 1)}
	g := newGuest()
	g.machine = h
	h.ends <- io.ErrUnexpectedEOF
	err := g.run(t.Context(), func(context.Context, string) error {
		t.Error("it was taken for one that has ended by itself")
		return nil
	})
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v", err)
	}
	for end, ends := range map[error]bool{gokvmhost.ErrPowerOff: true, gokvmhost.ErrReset: true, io.ErrUnexpectedEOF: false} {
		if how := howEnded(end); (how != "") != ends {
			t.Errorf("%v: %q", end, how)
		}
	}
}

func TestWhatIsDecidedWithoutAnEndEndsTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHost{ends: make(chan error, 1)}
		g := newGuest()
		g.machine = h
		h.ends <- gokvmhost.ErrPowerOff
		ctx, cancel := context.WithCancelCause(context.Background())
		done := make(chan error, 1)
		go func() {
			done <- g.run(ctx, func(ctx context.Context, _ string) error {
				<-ctx.Done()
				return context.Cause(ctx)
			})
		}()
		synctest.Wait()
		cancel(io.ErrClosedPipe)
		if err := <-done; !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("got %v", err)
		}
	})
}
