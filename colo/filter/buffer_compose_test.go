package filter_test

import (
	"errors"
	"math"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
)

func TestNothingIsTakenThatIsNotComposed(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	b.Mark(0)
	called := 0
	no := func([]byte) bool { called++; return false }
	for n, want := range map[int]error{-1: filter.ErrFrame, 0: filter.ErrFrame, filter.MaxFrame + 1: filter.ErrFrameTooBig} {
		if err := b.ComposePacket(n, no); !errors.Is(err, want) || called != 0 {
			t.Errorf("%d bytes: %v after %d calls, want %v", n, err, called, want)
		}
	}
	var malformed *filter.Error
	if err := b.ComposePacket(100, no); !errors.Is(err, filter.ErrFrame) || !errors.As(err, &malformed) || called != 1 {
		t.Errorf("no packet after all: %v after %d calls", err, called)
	}
	func() {
		defer func() { recover() }()
		b.ComposePacket(100, func([]byte) bool { panic("the guest's memory") })
	}()
	if err := b.ComposePacket(4, func(p []byte) bool { return copy(p, "abcd") == 4 }); err != nil {
		t.Error(err)
	}
	if s := b.Stats(); s.Held != 1 || s.HeldBytes != 4 || s.Refused != 0 {
		t.Errorf("%+v", s)
	}
}

// A full buffer refuses before it asks for the packet, or, if others have come meanwhile,
// after.
func TestAFullBufferComposesNothing(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{Limit: 1}) // the least
	b.Mark(0)
	large := make([]byte, filter.MaxFrame)
	fill := func() {
		for b.WritePacket(large) == nil {
		}
	}
	if err := b.ComposePacket(len(large), func([]byte) bool { fill(); return true }); err != filter.ErrFull {
		t.Errorf("others have filled it: %v", err)
	}
	if err := b.ComposePacket(len(large), func([]byte) bool { t.Error("composed for nobody"); return true }); err != filter.ErrFull {
		t.Error(err)
	}
	if s := b.Stats(); s.Refused != 3 || s.Held < 3 {
		t.Errorf("%+v", s)
	}
	if err := b.Received(0); err != nil {
		t.Error(err)
	}
}

// A commit, and whatever else drops the packets that wait, leaves the packet that is being
// composed alone: it is a later one.
func TestAPacketThatIsComposedOutlivesACommit(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	b.Commit(0)
	b.WritePacket([]byte("void"))
	if err := b.ComposePacket(4, func(p []byte) bool {
		p[0], p[1] = 'k', 'e'
		b.Commit(1)
		b.WritePacket([]byte("between"))
		p[2], p[3] = 'p', 't'
		return true
	}); err != nil {
		t.Fatal(err)
	}
	b.Failover()
	if got := released(t, b); got != "between kept" {
		t.Errorf("%q left", got)
	}
}

func TestAComposedPacketIsHeldAndReleasedWithoutAllocation(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	gather := func(p []byte) bool { p[0] = 1; return true }
	epoch := uint64(0)
	if n := testing.AllocsPerRun(100, func() {
		b.Commit(epoch)
		epoch++
		for range 100 {
			if err := b.ComposePacket(1500, gather); err != nil {
				t.Fatal(err)
			}
		}
	}); n > 0 {
		t.Errorf("%v allocations in 100 packets", n)
	}
}

// A packet whose length comes with it is the same as one whose length was known, whatever comes between.
func TestAPacketIsComposedInMemoryForMore(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{})
	b.Commit(0)
	put := func(most int, text string, meanwhile func()) {
		t.Helper()
		if err := b.ComposeAtMost(most, func(p []byte) int {
			if len(p) != most {
				t.Errorf("%d bytes, want %d", len(p), most)
			}
			meanwhile()
			return copy(p, text)
		}); err != nil {
			t.Error(err)
		}
	}
	put(filter.MaxFrame, "void", func() {})
	put(filter.MaxFrame, "kept", func() {
		b.Commit(1)
		b.WritePacket([]byte("between"))
	})
	put(5, "exact", func() {})
	put(filter.MaxFrame, "last", func() {})
	if s := b.Stats(); s.HeldBytes != 20 {
		t.Errorf("%d bytes are held", s.HeldBytes)
	}
	b.Failover()
	if got := released(t, b); got != "between kept exact last" {
		t.Errorf("%q left", got)
	}
	b = filter.NewBuffer(filter.BufferConfig{})
	for _, n := range []int{0, -1, 101, math.MaxInt} {
		if err := b.ComposeAtMost(100, func([]byte) int { return n }); !errors.Is(err, filter.ErrFrame) {
			t.Errorf("%d bytes of 100: %v", n, err)
		}
	}
	for n, want := range map[int]error{-1: filter.ErrFrame, 0: filter.ErrFrame, filter.MaxFrame + 1: filter.ErrFrameTooBig} {
		if err := b.ComposeAtMost(n, func([]byte) int { t.Error("called"); return 1 }); !errors.Is(err, want) {
			t.Errorf("at most %d bytes: %v", n, err)
		}
	}
}

func TestAFullBufferReadsNothing(t *testing.T) {
	b := filter.NewBuffer(filter.BufferConfig{Limit: 1}) // the least
	b.Mark(0)
	large, called := make([]byte, filter.MaxFrame), 0
	read := func(p []byte) int { called++; return copy(p, large) }
	for b.ComposeAtMost(filter.MaxFrame, read) == nil {
	}
	if s := b.Stats(); s.Refused != 1 || int(s.Held) != called {
		t.Errorf("%d reads, %+v", called, s)
	}
	b = filter.NewBuffer(filter.BufferConfig{Limit: 1})
	b.Mark(0)
	if err := b.ComposeAtMost(filter.MaxFrame, func([]byte) int {
		for b.WritePacket(large) == nil {
		}
		return len(large)
	}); err != filter.ErrFull {
		t.Errorf("others have filled it: %v", err)
	}
}
