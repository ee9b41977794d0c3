package main

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate/ram"
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

func TestACommitBringsASecondarysGuestBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHost{ends: make(chan error)}
		g := newGuest(options{mode: modeSecondary})
		g.machine = h
		done := make(chan error, 1)
		go func() { done <- g.Run(context.Background()) }()

		page := make([]byte, ram.PageSize)
		cache, err := ram.NewCache([]ram.Block{{Name: "ram", Host: page}}, nil, ram.CacheConfig{})
		if err != nil {
			t.Fatal(err)
		}
		defer cache.Close()
		st := &stage{cache, g}
		h.ends <- gokvmhost.ErrReset
		synctest.Wait()
		if h.runs != 1 {
			t.Fatalf("a guest that has ended ran %d times", h.runs)
		}
		cache.Discard()
		if err := st.Flush(); err == nil {
			t.Error("what was discarded has been committed")
		}
		synctest.Wait()
		if h.runs != 1 {
			t.Error("a commit that failed has brought the guest back")
		}
		cache.NewSession()
		if err := st.Flush(); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if h.runs != 2 {
			t.Errorf("after the commit it ran %d times", h.runs)
		}

		// It ends again, and nobody will bring it back.
		h.ends <- gokvmhost.ErrPowerOff
		synctest.Wait()
		select {
		case err := <-done:
			t.Errorf("it did not wait for a commit: %v", err)
		default:
		}
		g.goAlone()
		if err := <-done; !errors.Is(err, gokvmhost.ErrPowerOff) {
			t.Errorf("got %v", err)
		}
	})
}

func TestAPrimarysGuestEndsAtOnce(t *testing.T) {
	for _, want := range []error{gokvmhost.ErrPowerOff, gokvmhost.ErrReset, io.ErrUnexpectedEOF} {
		h := &fakeHost{ends: make(chan error, 1)}
		g := newGuest(options{mode: modePrimary})
		g.machine = h
		h.ends <- want
		if err := g.Run(t.Context()); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
		if said := howEnded(want); (said == "") != (want == io.ErrUnexpectedEOF) {
			t.Errorf("%v: %q", want, said)
		}
	}
}

func TestWaitingForACommitEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &fakeHost{ends: make(chan error, 1)}
		g := newGuest(options{mode: modeSecondary})
		g.machine = h
		h.ends <- gokvmhost.ErrPowerOff
		ctx, cancel := context.WithCancelCause(context.Background())
		done := make(chan error, 1)
		go func() { done <- g.Run(ctx) }()
		synctest.Wait()
		cancel(io.ErrClosedPipe)
		if err := <-done; err != io.ErrClosedPipe {
			t.Errorf("got %v", err)
		}
	})
}
