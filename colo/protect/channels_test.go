package protect

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

func withChannels(n int, m multifd.Method) func(*Config) {
	return func(c *Config) { c.Channels = Channels{Count: n, Method: m} }
}

// channels counts the channels for memory of the session of a host.
func (h *host) channels() int {
	if s := h.job.Query().Session; s != nil {
		return s.Channels
	}
	return -1
}

// A pair has the smaller number of channels of memory, whichever side a host is, and none
// where the secondary does not know the method.
func TestMemoryGoesOverAsManyChannelsAsBothHostsHave(t *testing.T) {
	t.Parallel()
	unknown := func(c *Config) {
		c.Channels = Channels{Count: 2, Decoder: func(multifd.Method) (multifd.Decoder, error) { return nil, errors.New("it is not known") }}
	}
	for name, c := range map[string]struct {
		a, b         func(*Config)
		there, after int // after: when b has the guest, and a follows
	}{
		"the same":           {withChannels(2, multifd.None), withChannels(2, multifd.None), 2, 2},
		"fewer there":        {withChannels(3, multifd.Zlib), withChannels(1, multifd.None), 1, 1},
		"fewer here":         {withChannels(1, multifd.Zlib), withChannels(4, multifd.Zlib), 1, 1},
		"none there":         {withChannels(2, multifd.None), nil, 0, 0},
		"none here":          {nil, withChannels(2, multifd.None), 0, 0},
		"a method not known": {withChannels(2, multifd.Zlib), unknown, 0, 2},
	} {
		bubble(t, name, func(t *testing.T, w *world) {
			w.guest.Interval = 10 * time.Millisecond
			w.forget()
			b := w.boot("b", false, c.b)
			a := w.boot("a", true, c.a)
			a.is(Protected)
			b.is(Following)
			time.Sleep(300 * time.Millisecond)
			if x, y := a.channels(), b.channels(); x != c.there || y != c.there {
				t.Errorf("%d channels, %d on the secondary; want %d", x, y, c.there)
			}
			if err := a.job.Switchover(t.Context()); err != nil {
				t.Error(err)
			}
			b.is(Protected)
			time.Sleep(300 * time.Millisecond)
			if n := b.channels(); n != c.after {
				t.Errorf("%d channels after a switchover, want %d", n, c.after)
			}
			b.kill(true)
			a.is(Alone)
			b.bury()
			b = w.boot("b", false, c.b)
			a.is(Protected)
			a.halt()
			b.halt()
		})
	}
}

// The connections of a pair's memory break, or fall silent, at each of their operations,
// while they are greeted and in checkpoints; with hosts that keep a copy of the memory,
// and with hosts that do not.
func TestChannelsOfMemoryBreakAtEveryOperation(t *testing.T) {
	t.Parallel()
	at := require.Many([]int64{2}, []int64{1, 2, 8}, []int64{0, 1, 2, 3, 5, 8, 13, 30})
	for _, stall := range []bool{false, true} {
		for _, back := range []bool{false, true} {
			if testing.Short() && stall == back {
				continue
			}
			for _, n := range at {
				if back && n > 2 {
					continue // a channel has nothing to say in that direction but its greeting
				}
				for connection := range int64(2) { // after those for control and heartbeats
					if testing.Short() && (connection == 0) == stall {
						continue
					}
					name := fmt.Sprintf("channel %d, back %v, read %d, stall %v", connection, back, n, stall)
					synctest.Test(t, func(t *testing.T) {
						w := newWorld(t)
						w.lean = n%2 == 1
						w.guest.Interval = 20 * time.Millisecond
						w.forget()
						w.f.flow = breakOnce(2+connection, back, n, stall)
						b := w.boot("b", false, withChannels(2, multifd.None))
						a := w.boot("a", true, withChannels(2, multifd.None))
						time.Sleep(12 * time.Second) // longer than anything waits
						a.is(Protected)
						b.is(Following)
						if n := a.channels(); n != 2 {
							t.Errorf("%d channels", n)
						}
						before := w.heard()
						time.Sleep(300 * time.Millisecond)
						if w.heard() == before {
							t.Error("the guest stands still")
						}
						b.halt()
						a.halt()
						w.clean()
						if t.Failed() {
							t.Fatal(name)
						}
					})
				}
			}
		}
	}
}

// A compressor that cannot be made any more costs a pair its channels, and not the guest.
func TestAPairWithoutACompressorHasNoChannels(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		w.forget()
		gone := errors.New("no memory for a compressor")
		made := 0
		b := w.boot("b", false, withChannels(2, multifd.None))
		a := w.boot("a", true, func(c *Config) {
			c.Channels = Channels{Count: 2, Method: multifd.Zlib, Compressor: func(m multifd.Method) (multifd.Compressor, error) {
				if made++; made > 1 { // the first is that of New
					return nil, gone
				}
				return multifd.CompressZlib(m)
			}}
		})
		a.is(Protected)
		b.is(Following)
		time.Sleep(300 * time.Millisecond)
		if x, y := a.channels(), b.channels(); x != 0 || y != 0 {
			t.Errorf("%d channels, %d on the secondary", x, y)
		}
		if err := a.job.Query().LastError; !errors.Is(err, gone) {
			t.Errorf("the last error is %v", err)
		}
		b.kill(true)
		a.is(Alone)
		b.bury()
		a.halt()
	})
}

func TestChannelsThatCannotBeAreRefused(t *testing.T) {
	for _, c := range []Channels{{Count: -1}, {Count: 256}, {Count: 1, Method: multifd.Zstd}} {
		if err := c.check(); err == nil {
			t.Errorf("%+v", c)
		}
	}
	if err := (&Channels{Method: multifd.Zstd}).check(); err != nil {
		t.Errorf("none of a method that is not used: %v", err)
	}
	for n, want := range map[int]int{0: 0, 1: 1, 2: 2, 3: 2, 255: 2} {
		if got := (&Channels{Count: 2}).agree(&offer{Channels: n}); got != want {
			t.Errorf("2 here and %d there are %d", n, got)
		}
	}
	for _, n := range []int{-1, 256, math.MaxInt} {
		h := someHello()
		h.Offer.Channels = n
		var b strings.Builder
		if err := writeHello(&b, h); err != nil {
			t.Fatal(err)
		}
		if _, err := readHello(strings.NewReader(b.String())); !errors.Is(err, ErrHello) {
			t.Errorf("an offer of %d channels: %v", n, err)
		}
	}
}
