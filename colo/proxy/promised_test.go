package proxy_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/packet"
)

// The secondary's guest runs on from the last checkpoint while the primary's is behind the mark of the next.
func TestInputBehindAMarkIsNotForAGuestThatRunsFromTheCheckpointBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		w.must(w.p.Pause(w.ctx))
		w.must(w.p.Mark(w.epoch))
		w.must(w.p.Resume(w.ctx))
		w.arrive("behind")
		w.wantTold("", w.pg, "behind")
		w.wantTold("its own guest has not come to that mark", w.sg)
	})
}

// A connection may be made before the session begins, to a side that has followed another.
func TestAMarkerOfAnotherSessionEndsNoConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.must(w.s.Commit(0))
		w.must(w.s.Resume(w.ctx))
		w.connect()
		if !w.p.Stats().Connected || !w.s.Stats().Connected {
			t.Error("the connection has ended")
		}
		w.epoch = 0
		w.checkpoint()
		w.say(w.sg, "a")
		w.say(w.pg, "a")
		w.wantLeft("both have said it", w.pw, "a")
	})
}

// What finds no room on the way to the secondary makes the guests differ.
func TestInputThatIsLostOnTheWayToTheSecondaryIsAReasonForACheckpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(p *proxy.PrimaryConfig, s *proxy.SecondaryConfig) { p.Mirror = 1 })
		defer w.end()
		w.connect()
		w.checkpoint()
		w.must(w.s.Pause(w.ctx)) // it reads no more
		w.requests()
		big := datagram(string(make([]byte, 60000)))
		for range 12 {
			w.pw.in <- big
		}
		if r := w.requests(); !slices.Contains(r, event.CauseDivergence) || w.p.Stats().Unsent == 0 {
			t.Errorf("%v is asked for, %d are lost", r, w.p.Stats().Unsent)
		}
	})
}

func TestWhatIsComparedByDefault(t *testing.T) {
	arp := make([]byte, 42)
	copy(arp[6:], []byte{2, 0, 0, 0, 0, 1, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1})
	plain := datagram("ping")
	for what, f := range map[string][]byte{
		"a datagram":      plain,
		"one in a VLAN":   slices.Concat(plain[:12], []byte{0x81, 0, 0, 5}, plain[12:]),
		"one in two":      slices.Concat(plain[:12], []byte{0x88, 0xa8, 0, 5, 0x81, 0, 0, 6}, plain[12:]),
		"one in PPP":      slices.Concat(plain[:12], []byte{0x88, 0x64, 0x11, 0, 0, 7, 0, byte(len(plain) - 14 + 2), 0, 0x21}, plain[14:]),
		"an answer (ARP)": arp,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			defer w.end()
			w.connect()
			w.checkpoint()
			w.must(w.p.WritePacket(f))
			synctest.Wait()
			if n := len(w.pw.left()); n != 0 {
				t.Errorf("%s: %d leave that only one guest has said", what, n)
			}
			w.must(w.s.WritePacket(f))
			synctest.Wait()
			if n := len(w.pw.left()); n != 1 {
				t.Errorf("%s: %d leave that both have said", what, n)
			}
		})
	}
}

func TestAPrimaryDoesNotLoad(t *testing.T) {
	for _, continuous := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newContinuous(t, continuous)
			defer w.end()
			x := w.mark()
			if err := w.preg.LoadDevices(x.network, nil); err == nil {
				t.Errorf("continuous=%t: it has loaded a section", continuous)
			}
			w.preg.Rollback()
		})
	}
}

// A commit gives the guest the numbers of the primary's.
func TestNothingIsTranslatedBehindACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, nil)
		defer w.end()
		w.connect()
		w.checkpoint()
		syn := datagram("")
		syn[14+9] = packet.ProtoTCP
		syn = append(syn[:34], make([]byte, packet.TCPLen)...)
		binary.BigEndian.PutUint16(syn[16:], uint16(len(syn)-14))
		h := packet.TCP(syn[34:])
		h[12], h[13] = 5<<4, packet.SYN
		binary.BigEndian.PutUint32(h, 80<<16|5000)
		h.SetSeq(1000)
		w.must(w.s.WritePacket(syn))
		if n := w.s.Stats().Rewriter.Conns; n != 1 {
			t.Fatalf("%d connections are followed", n)
		}
		w.checkpoint()
		if n := w.s.Stats().Rewriter.Conns; n != 0 {
			t.Errorf("%d connections are followed", n)
		}
	})
}

// A peer that is no friend sends markers as it likes.
func TestMarkersThatGoBackEndTheConnection(t *testing.T) {
	for name, c := range map[string]struct {
		epochs []uint64
		ends   bool
	}{
		"in order":                    {[]uint64{0, 1, 2}, false},
		"some left out":               {[]uint64{0, 7, 9}, false},
		"a session after another":     {[]uint64{0, 1, 2, 0, 1}, false},
		"back":                        {[]uint64{5, 3}, true},
		"the one that is never there": {[]uint64{^uint64(0) - 1}, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, nil)
			defer w.end()
			a, b := net.Pipe()
			done := make(chan error, 1)
			w.group.Go(func() { done <- w.s.Serve(w.ctx, b) })
			w.group.Go(func() { io.Copy(io.Discard, a) })
			hello := append([]byte("COLOprx1PC\x00\x00"), 0, 0, 0, 0)
			binary.BigEndian.PutUint32(hello[12:], proxy.DefaultLimit)
			if _, err := a.Write(hello); err != nil {
				t.Fatal(err)
			}
			conn := filter.NewConn(struct {
				io.Reader
				io.Writer
			}{bytes.NewReader(nil), a}, filter.ConnConfig{Marks: true})
			w.group.Go(func() {
				for _, e := range c.epochs {
					if conn.WriteMark(e) != nil {
						return
					}
				}
			})
			synctest.Wait()
			var err error
			select {
			case err = <-done:
			default:
			}
			if got := errors.Is(err, filter.ErrEpoch); got != c.ends || err != nil && !got {
				t.Errorf("%s: %v", name, err)
			}
			a.Close()
		})
	}
}
