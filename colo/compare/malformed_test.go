package compare_test

import (
	"context"
	"errors"
	"io"
	"math"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// headers are lengths of virtio-net headers that a frame of three bytes cannot have.
var headers = []int{math.MinInt, -12, -1, 4, 12, math.MaxInt}

// configs are engines that let pass what they cannot compare, that hold it, and that do
// as QEMU does.
var configs = map[string]compare.Config{
	"pass": {}, "hold": everything(), "strict": {Strict: true},
}

// A frame that ends before its virtio-net header does is held or passes as it is, in
// each state of an engine, and is not looked into.
func TestAnEngineDoesNotLookBeyondAFrameForItsHeader(t *testing.T) {
	for name, cfg := range configs {
		t.Run(name, func(t *testing.T) {
			for _, n := range headers {
				e, now := compare.NewEngine(cfg), time.Unix(1000, 0)
				f := compare.Frame{Data: []byte("abc"), VNetHdr: n}
				given, left := 0, 0
				say := func() {
					given++
					left += len(e.Primary(f, now).Release)
					left += len(e.Secondary(f, now).Release)
					if e.Inbound(f) {
						t.Errorf("header of %d bytes: changed on the way to the guest", n)
					}
					left += len(e.Tick(now).Release)
				}
				say()
				for epoch := range uint64(2) {
					err := e.Mark(epoch)
					say()
					e.Covered(func(compare.Frame) {})
					r, err2 := e.Received(epoch)
					left += len(r.Release)
					s, err3 := e.SecondaryMark(epoch)
					left += len(s.Release)
					if err := errors.Join(err, err2, err3, e.Loaded(epoch)); err != nil {
						t.Fatal(err)
					}
					say()
				}
				left += len(e.Failover().Release)
				say()
				if s := e.Stats(); left != given || s.Held != 0 || s.HeldBytes != 0 {
					t.Errorf("header of %d bytes: %d frames have left of %d, %d are held in %d bytes", n, left, given, s.Held, s.HeldBytes)
				}
			}
		})
	}
}

// headed reads frames whose headers have some length.
type headed struct {
	left int
	vnet int
}

func (r *headed) VNetHdrLen() int { return r.vnet }

func (r *headed) ReadPacket() ([]byte, error) {
	if r.left--; r.left < 0 {
		return nil, io.EOF
	}
	return []byte("abc"), nil
}

// What no network could be given is refused, so that Run never stands before a packet
// that fails each time.
func TestAComparerTakesNoFrameThatEndsInItsHeader(t *testing.T) {
	for name, cfg := range configs {
		t.Run(name, func(t *testing.T) {
			for _, marked := range []bool{false, true} {
				for _, n := range headers {
					c := compare.NewComparer(cfg)
					if marked {
						if err := c.Mark(0); err != nil {
							t.Fatal(err)
						}
					}
					if err := c.WriteVNetPacket([]byte("abc"), n); !errors.Is(err, compare.ErrFrame) {
						t.Errorf("header of %d bytes: %v", n, err)
					}
					if err := c.WritePacket(nil); !errors.Is(err, compare.ErrFrame) {
						t.Errorf("empty: %v", err)
					}
					if p := c.Inbound([]byte("abc"), n); string(p) != "abc" {
						t.Errorf("%q is what the guest gets", p)
					}
					for who, err := range map[string]error{
						"primary":   c.ServePrimary(t.Context(), &headed{2, n}),
						"secondary": c.ServeSecondary(t.Context(), &headed{2, n}),
						"notify":    c.ServeNotify(t.Context(), &headed{2, n}, writes(func([]byte) error { return nil })),
					} {
						if err != io.EOF {
							t.Errorf("%s: %v", who, err)
						}
					}
					if s, queued := c.Stats(); queued != 0 || s.Held != 0 || s.Passed != 0 {
						t.Errorf("header of %d bytes: %d queued, %+v", n, queued, s)
					}
					ctx, cancel := context.WithCancel(t.Context())
					ok := c.WriteVNetPacket([]byte("abc"), 3)
					c.Failover()
					if err := c.Run(ctx, writes(func(p []byte) error { cancel(); return nil })); ok != nil || err != context.Canceled {
						t.Errorf("a frame that is its header: %v, %v", ok, err)
					}
					cancel()
				}
			}
		})
	}
}

// writes is a PacketWriter.
type writes func(p []byte) error

func (w writes) WritePacket(p []byte) error { return w(p) }
