package proxy_test

import (
	"errors"
	"math"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
)

// A composed packet goes the way of a written one, on either side, in either mode, and the
// addresses in it are learned.
func TestComposedPacketsGoTheWayOfWrittenOnes(t *testing.T) {
	type nic interface {
		ComposePacket(int, func([]byte) bool) error
		ComposeAtMost(int, func([]byte) int) error
	}
	for way := range 4 {
		continuous, most := way%2 == 1, way > 1
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
				p.Continuous, s.Continuous = continuous, continuous
			})
			compose := func(to nic, text string) {
				t.Helper()
				p := datagram(text)
				if most {
					w.must(to.ComposeAtMost(filter.MaxFrame, func(b []byte) int { return copy(b, p) }))
				} else {
					w.must(to.ComposePacket(len(p), func(b []byte) bool { return copy(b, p) == len(b) }))
				}
				synctest.Wait()
			}
			w.connect()
			compose(w.p, "0")
			w.checkpoint()
			compose(w.p, "a")
			compose(w.s, "a")
			compose(w.s, "b")
			compose(w.p, "b")
			if left := map[bool]uint64{false: 2, true: 0}[continuous]; w.p.Stats().Matched != left {
				t.Errorf("continuous %v: %d packets have matched, want %d", continuous, w.p.Stats().Matched, left)
			}
			w.checkpoint()
			w.wantLeft("all", w.pw, "0", "a", "b")
			compose(w.s, "c")
			w.must(w.s.Failover())
			compose(w.s, "d")
			if continuous {
				w.wantLeft("inherited ones, and its own", w.sw, "a", "b", "c", "d")
			} else {
				w.wantLeft("its own", w.sw, "c", "d")
			}
			w.must(w.p.Failover())
			w.end()
		})
	}
}

func TestNothingIsSentThatIsNotComposed(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		g := &guest{t: t}
		p := proxy.NewPrimary(proxy.PrimaryConfig{VM: g, Deliver: g.deliver, Continuous: continuous, VNetHdr: 12})
		s := proxy.NewSecondary(proxy.SecondaryConfig{VM: g, Deliver: g.deliver, Continuous: continuous, VNetHdr: 12})
		for side, compose := range map[string]func(int, func([]byte) bool) error{"primary": p.ComposePacket, "secondary": s.ComposePacket} {
			called := 0
			no := func([]byte) bool { called++; return false }
			for n, want := range map[int]error{-1: filter.ErrFrame, 0: filter.ErrFrame, 12: filter.ErrFrame, filter.MaxFrame + 1: filter.ErrFrameTooBig} {
				if err := compose(n, no); !errors.Is(err, want) || called != 0 {
					t.Errorf("%s, %d bytes: %v after %d calls, want %v", side, n, err, called, want)
				}
			}
			var malformed *filter.Error
			if err := compose(100, no); !errors.Is(err, filter.ErrFrame) || !errors.As(err, &malformed) || called != 1 {
				t.Errorf("%s, no packet after all: %v after %d calls", side, err, called)
			}
		}
		for side, compose := range map[string]func(int, func([]byte) int) error{"primary": p.ComposeAtMost, "secondary": s.ComposeAtMost} {
			called, says := 0, 0
			no := func([]byte) int { called++; return says }
			for n, want := range map[int]error{-1: filter.ErrFrame, 0: filter.ErrFrame, 12: filter.ErrFrame, filter.MaxFrame + 1: filter.ErrFrameTooBig} {
				if err := compose(n, no); !errors.Is(err, want) || called != 0 {
					t.Errorf("%s, at most %d bytes: %v after %d calls, want %v", side, n, err, called, want)
				}
			}
			for _, says = range []int{0, -1, 12, 101, math.MaxInt} { // a header without a packet is none
				var malformed *filter.Error
				if err := compose(100, no); !errors.Is(err, filter.ErrFrame) || !errors.As(err, &malformed) {
					t.Errorf("%s, a packet of %d bytes in 100: %v", side, says, err)
				}
			}
			if called != 5 {
				t.Errorf("%s: %d calls", side, called)
			}
		}
		if h := p.HeldOutput(); h.Packets != 0 || s.Stats().Keep.Held+s.Stats().Keep.Queued != 0 {
			t.Errorf("%+v, %+v", h, s.Stats())
		}
	}
}

func TestAComposedPacketTakesNoNewMemory(t *testing.T) {
	g := &guest{t: t}
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: g, Deliver: g.deliver})
	p := datagram("word")
	compose := func(b []byte) bool { return copy(b, p) == len(b) }
	for epoch := range uint64(2) {
		if err := s.Commit(epoch); err != nil {
			t.Fatal(err)
		}
		if n := testing.AllocsPerRun(1000, func() {
			if err := s.ComposePacket(len(p), compose); err != nil {
				t.Fatal(err)
			}
		}); n != 0 && epoch > 0 { // in the first it takes the memory that it has in the end
			t.Errorf("%v allocations", n)
		}
	}
}

// A NIC may wait for its guest's memory while it composes, and its program may live on
// after a panic of its own. Nobody else has to wait for either.
func TestNobodyWaitsForAPacketThatIsBeingComposed(t *testing.T) {
	for way := range 4 {
		continuous, most := way%2 == 1, way > 1
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) {
				p.Continuous, s.Continuous = continuous, continuous
			})
			w.connect()
			w.checkpoint()
			there := make(chan struct{})
			for side, nic := range map[string]interface {
				ComposePacket(int, func([]byte) bool) error
				ComposeAtMost(int, func([]byte) int) error
				WritePacket([]byte) error
			}{"primary": w.p, "secondary": w.s} {
				func() {
					defer func() {
						if recover() == nil {
							t.Errorf("%s: a panic is swallowed", side)
						}
					}()
					nic.ComposePacket(100, func([]byte) bool { panic("the guest's memory") })
				}()
				p := datagram("late")
				if most {
					go nic.ComposeAtMost(filter.MaxFrame, func(b []byte) int { <-there; return copy(b, p) })
				} else {
					go nic.ComposePacket(len(p), func(b []byte) bool { <-there; return copy(b, p) == len(b) })
				}
				synctest.Wait()
				w.must(nic.WritePacket(datagram("early")))
				synctest.Wait()
			}
			w.checkpoint() // of guests whose NICs do not obey
			w.wantLeft("what was written", w.pw, "early")
			close(there)
			synctest.Wait()
			w.checkpoint()
			w.wantLeft("both", w.pw, "early", "late")
			if !continuous && w.p.Stats().Matched != 2 {
				t.Errorf("%d have matched", w.p.Stats().Matched)
			}
			w.end()
		})
	}
}
