package proxy_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// A port is a network that remembers frames as they are.
type port struct {
	t      *testing.T
	mu     sync.Mutex
	busy   bool
	frames []string
	closed chan struct{}
	once   sync.Once
}

func newPort(t *testing.T) *port { return &port{t: t, closed: make(chan struct{})} }

func (p *port) ReadPacket() ([]byte, error) { <-p.closed; return nil, io.EOF }

func (p *port) Close() error { p.once.Do(func() { close(p.closed) }); return nil }

func (p *port) WritePacket(f []byte) error {
	p.mu.Lock()
	if p.busy {
		p.t.Error("two write at once")
	}
	p.busy = true
	p.mu.Unlock()
	time.Sleep(time.Microsecond) // of the bubble: whoever else could write does
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = false
	p.frames = append(p.frames, hex.EncodeToString(f))
	return nil
}

// heard returns what has left since the last call.
func (p *port) heard() []string {
	synctest.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.frames
	p.frames = nil
	return f
}

// announcedAt has the frames of one round of announcements, for the guest that arpOf speaks
// for.
var announcedAt = []string{
	qemuRARP,
	"ffffffffffff525400000001" + "0806" + "0001080006040001" + "5254000000010a000001" + "0000000000000a000001" + strings.Repeat("00", 18),
}

// secondaryAlone returns a secondary of a primary whose guest has said once who it
// is, with its Run.
func secondaryAlone(t *testing.T, out proxy.Network, change func(*proxy.SecondaryConfig)) (*proxy.Secondary, chan error) {
	t.Helper()
	p := proxy.NewPrimary(proxy.PrimaryConfig{VM: &guest{t: t}, Deliver: func([]byte) error { return nil }})
	cfg := proxy.SecondaryConfig{VM: &guest{t: t, paused: true}, Deliver: func([]byte) error { return nil }, Announce: proxy.AnnounceConfig{Rounds: 5}}
	if change != nil {
		change(&cfg)
	}
	s := proxy.NewSecondary(cfg)
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	must(p.WritePacket(frameOf(t, fmt.Sprintf(arpOf, ""))))
	must(p.Pause(t.Context()))
	must(p.Mark(0))
	commitState(t, s, sectionOf(t, p.Entry(0), p))
	must(s.Commit(0))
	must(s.Resume(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(t.Context(), out) }()
	return s, done
}

func sectionOf(t testing.TB, e vmstate.Entry, d vmstate.Device) []byte {
	t.Helper()
	var reg vmstate.Registry
	if err := reg.Register(e, d); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	q := qemufile.NewWriter(&b)
	if err := reg.SaveDevices(q); err != nil {
		t.Fatal(err)
	}
	vmstate.PutEOF(q)
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func commitState(t testing.TB, s *proxy.Secondary, state []byte) {
	t.Helper()
	var reg vmstate.Registry
	for _, err := range []error{reg.Register(s.Entry(0), s), reg.LoadDevices(state, nil), reg.Commit()} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestASideThatTakesOverAnnouncesTheGuestByWhatThePrimarysHasSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newPort(t)
		s, done := secondaryAlone(t, out, nil)
		time.Sleep(time.Hour)
		if f := out.heard(); len(f) > 0 {
			t.Errorf("before it has taken over: %q", f)
		}
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
		arp := hex.EncodeToString(frameOf(t, fmt.Sprintf(arpOf, "")))
		f := out.heard()
		f = slices.DeleteFunc(f, func(s string) bool { return s == arp }) // what the guest has inherited
		if !slices.Equal(f, announcedAt) {
			t.Errorf("at once: %q", f)
		}
		time.Sleep(time.Hour)
		if f, want := out.heard(), slices.Repeat(announcedAt, 4); !slices.Equal(f, want) {
			t.Errorf("later: %q", f)
		}
		out.Close()
		if err := <-done; err != io.EOF {
			t.Error(err)
		}
	})
}

func TestAnAnnouncementWaitsForTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out, g := newPort(t), &leaf{ch: make(chan struct{})}
		s, done := secondaryAlone(t, out, func(c *proxy.SecondaryConfig) { c.Gate = g })
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if f := out.heard(); len(f) > 0 {
			t.Errorf("it is shut: %q", f)
		}
		g.open.Store(true)
		close(g.ch)
		time.Sleep(time.Hour)
		if f := out.heard(); len(f) != 1+5*len(announcedAt) {
			t.Errorf("%d frames: %q", len(f), f)
		}
		out.Close()
		<-done
	})
}

func TestAnAnnouncementEndsWhenTheGuestIsElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newPort(t)
		s, done := secondaryAlone(t, out, nil)
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
		out.heard()
		for _, err := range []error{s.Pause(t.Context()), s.Commit(0)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		if f := out.heard(); len(f) > 0 {
			t.Errorf("%q", f)
		}
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if f := out.heard(); len(f) != 5*len(announcedAt) {
			t.Errorf("back here: %q", f)
		}
		out.Close()
		<-done
	})
}

func TestAHostSaysWhatElseIsAnnouncedOrNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newPort(t)
		other := guestAt("10.0.0.9")
		other.MAC[5] = 9
		s, done := secondaryAlone(t, out, func(c *proxy.SecondaryConfig) {
			c.Announce = proxy.AnnounceConfig{Rounds: 1, Neighbors: []proxy.Neighbor{guestAt("10.0.0.1"), other}}
		})
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		f := out.heard()
		n := 0
		for _, x := range f {
			if strings.HasPrefix(x, "ffffffffffff525400000009") {
				n++
			}
		}
		if len(f) != 1+len(announcedAt)+2 || n != 2 {
			t.Errorf("%q", f)
		}
		out.Close()
		<-done
	})
	synctest.Test(t, func(t *testing.T) {
		out := newPort(t)
		s, done := secondaryAlone(t, out, func(c *proxy.SecondaryConfig) { c.Announce = proxy.AnnounceConfig{} })
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		if f := out.heard(); len(f) != 1 {
			t.Errorf("more than the guest has inherited: %q", f)
		}
		out.Close()
		<-done
	})
	synctest.Test(t, func(t *testing.T) {
		_, done := secondaryAlone(t, newPort(t), func(c *proxy.SecondaryConfig) {
			c.Announce.Neighbors = []proxy.Neighbor{{}}
		})
		if err := <-done; !errors.Is(err, proxy.ErrNeighbor) {
			t.Error(err)
		}
	})
}

func TestAPromotedPrimaryGoesOnWithTheAnnouncement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newPort(t)
		s, done := secondaryAlone(t, out, nil)
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		if err := s.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := len(out.heard())
		out.Close()
		<-done
		p, left := s.Promote(proxy.PrimaryConfig{})
		if left != 0 || !slices.Equal(p.Neighbors(), []proxy.Neighbor{guestAt("10.0.0.1")}) {
			t.Errorf("%d are left, it knows %v", left, p.Neighbors())
		}
		if err := p.Mark(0); err != nil {
			t.Errorf("its guest stands still: %v", err)
		}
		out = newPort(t)
		go func() { done <- p.Run(t.Context(), out) }()
		time.Sleep(time.Hour)
		if f := out.heard(); len(f) != 5*len(announcedAt) {
			t.Errorf("%d frames after %d: %q", len(f), before, f)
		}
		out.Close()
		<-done
	})
}

func TestASectionWithoutNeighborsLoads(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	if err := b.WritePacket([]byte("packet")); err != nil {
		t.Fatal(err)
	}
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: &guest{t: t}, Deliver: func([]byte) error { return nil }})
	commitState(t, s, sectionOf(t, b.Entry(0), b)) // as a Primary's of before
	if k := s.Stats().Keep; k.Inherited != 1 {
		t.Errorf("%+v", k)
	}
}

func TestDrainEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newPort(t)
		s, done := secondaryAlone(t, out, func(c *proxy.SecondaryConfig) { c.Gate = &leaf{} })
		if err := s.Failover(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		ctx, cancel := context.WithCancelCause(t.Context())
		go func() { ended <- s.Drain(ctx) }()
		time.Sleep(20 * time.Millisecond)
		why := errors.New("over")
		cancel(why)
		if err := <-ended; err != why {
			t.Error(err)
		}
		out.Close()
		<-done
	})
}
