package protect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
)

// opened is a gate that is never shut.
type opened struct{}

func (opened) Open() bool              { return true }
func (opened) Opened() <-chan struct{} { return nil }

// running makes a Proxy whose Run ends with the test.
func running(t *testing.T, cfg ProxyConfig, checkpoint func(event.Cause)) *Proxy {
	t.Helper()
	n, err := NewProxy(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	group.Go(func() { n.Run(ctx, NetworkHost{Gate: opened{}, Checkpoint: checkpoint}) })
	t.Cleanup(func() { cancel(); group.Wait() })
	if err := n.await(t.Context(), func() bool { return n.spawn != nil }); err != nil {
		t.Fatal(err)
	}
	return n
}

// What a packet of the guest shows may be told to somebody who wants to know how the
// network is, while the job stops the guest. Nobody waits for the packet then.
func TestAProxyIsAskedAndPausedWhileItTellsOfAPacket(t *testing.T) {
	h := newHub()
	var n *Proxy
	told := 0
	cfg := ProxyConfig{Uplink: h.plug("a"), Deliver: func([]byte) error { return nil }}
	n = running(t, cfg, func(event.Cause) {
		told++
		for what, f := range map[string]func(){
			"a pause":    func() { n.Runs(false) },
			"the input":  func() { n.Input(true) },
			"a question": func() { n.HeldOutput() },
			"a step":     func() { n.Failover() },
			"a count":    func() { n.Stats() },
		} {
			done := make(chan struct{})
			go func() { defer close(done); f() }()
			select {
			case <-done:
			case <-time.After(time.Minute):
				t.Errorf("%s waits for the packet", what)
				return
			}
		}
	})
	if err := n.Mark(0); err != nil {
		t.Fatal(err)
	}
	n.Runs(true)
	if err := n.WritePacket(segment{port: 1}.frame(false)); err != nil {
		t.Fatal(err)
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// A jam is an uplink that takes nothing until it is closed.
type jam struct {
	*plug
	writes chan struct{}
}

func (j jam) WritePacket([]byte) error {
	j.writes <- struct{}{}
	<-j.closed
	return errDead
}

// Nothing but the end of Run ends a write to an uplink that is jammed; who wants the
// other side meanwhile is let go with his context.
func TestAJammedUplinkHoldsNoSideForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		up := jam{h.plug("a"), make(chan struct{}, 1)}
		n := running(t, ProxyConfig{Uplink: up, Deliver: func([]byte) error { return nil }}, nil)
		n.Runs(true)
		if err := n.WritePacket(segment{port: 1}.frame(false)); err != nil {
			t.Fatal(err)
		}
		<-up.writes
		why := errors.New("enough")
		for range 2 {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
			if err := n.Follow(ctx); err != why {
				t.Errorf("Follow: %v", err)
			}
			cancel()
		}
	})
}

// A packet for a guest that takes none holds back who wants to lead, as long as his
// context allows; with the next call, when it is taken, he leads.
func TestAJammedGuestHoldsNoSideForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHub()
		taken := make(chan struct{})
		up := h.plug("a")
		n := running(t, ProxyConfig{Uplink: up, Deliver: func([]byte) error { <-taken; return nil }}, nil)
		if err := n.Follow(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := n.Failover(); err != nil {
			t.Fatal(err)
		}
		n.Input(true)
		n.Runs(true)
		for range 4 {
			h.send(segment{port: 1}.frame(true))
		}
		synctest.Wait()
		if len(n.giving) == 0 {
			t.Fatal("no packet waits")
		}
		why := errors.New("enough")
		for range 2 {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, why)
			if err := n.Lead(ctx); err != why {
				t.Errorf("Lead: %v", err)
			}
			cancel()
		}
		close(taken)
		if err := n.Lead(t.Context()); err != nil {
			t.Error(err)
		}
		if p, s := n.Stats(); p == nil || s != nil {
			t.Error("it does not lead")
		}
	})
}

// After a takeover everything is announced as often as the host has said.
func TestATakeoverIsAnnouncedAsOftenAsConfigured(t *testing.T) {
	for rounds, want := range map[int]int{0: 5, 2: 2, -1: 0} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			h := newHub()
			change := func(c *ProxyConfig) { c.Announce = proxy.AnnounceConfig{Rounds: rounds} }
			a, b := h.protected(w, change)
			h.ask(t, "who has", arp(1, clientMAC, clientAddr, serverAddr), func(x heard) bool { return bytes.Contains(x.frame, serverAddr) })
			n := b.job.Query().Stats.Checkpoints
			w.until(func() bool { return b.job.Query().Stats.Checkpoints > n+1 })
			h.mu.Lock()
			h.got = nil
			h.mu.Unlock()
			a.kill(false)
			b.is(Alone)
			time.Sleep(10 * time.Second)
			h.mu.Lock()
			got := 0
			for _, x := range h.got {
				if binary.BigEndian.Uint16(x.frame[12:]) == 0x8035 {
					got++
				}
			}
			h.mu.Unlock()
			if got != want {
				t.Errorf("%d rounds: %d RARP requests, not %d", rounds, got, want)
			}
			a.bury()
			b.halt()
		})
	}
}
