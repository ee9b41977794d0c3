package proxy

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/packet"
)

// A slowNetwork takes a packet when it is let, and counts what it was given.
type slowNetwork struct {
	let     chan struct{}
	packets atomic.Int64
}

func (*slowNetwork) ReadPacket() ([]byte, error) { return nil, errors.New("there is none") }
func (s *slowNetwork) WritePacket([]byte) error {
	s.packets.Add(1)
	<-s.let
	return nil
}

// A shutter is a Gate that can be shut, and is opened once after that.
type shutter struct {
	shut   atomic.Bool
	opened chan struct{}
}

func (l *shutter) Open() bool              { return !l.shut.Load() }
func (l *shutter) Opened() <-chan struct{} { return l.opened }

// An announcement may wait for a packet of the guest that is being written. Whether it may
// be sent is asked after that wait.
func TestAnAnnouncementThatHasWaitedIsAskedForAgain(t *testing.T) {
	why := errors.New("over")
	for name, c := range map[string]struct {
		meanwhile func(*announcer, *shutter)              // while a packet is being written
		then      func(*shutter, context.CancelCauseFunc) // and after it
		sent      int64
		err       error
	}{
		"nothing happens":     {func(*announcer, *shutter) {}, nil, 2, nil},
		"the guest has moved": {func(a *announcer, _ *shutter) { a.cancel() }, nil, 1, errMoved},
		"the gate is shut, and opens": {func(_ *announcer, l *shutter) { l.shut.Store(true) },
			func(l *shutter, _ context.CancelCauseFunc) { l.shut.Store(false); close(l.opened) }, 2, nil},
		"the gate is shut, and it ends": {func(_ *announcer, l *shutter) { l.shut.Store(true) },
			func(_ *shutter, cancel context.CancelCauseFunc) { cancel(why) }, 1, why},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				n := &slowNetwork{let: make(chan struct{}, 1)}
				u := &uplink{network: n, edge: new(filter.Edge), turn: make(chan struct{}, 1)}
				a := newAnnouncer(AnnounceConfig{Rounds: 5}, new(Neighbors))
				a.begin()
				l := &shutter{opened: make(chan struct{})}
				go u.WritePacket([]byte("of the guest"))
				synctest.Wait()
				done := make(chan error, 1)
				go func() { done <- announced{ctx, a, a.pending(), l, u}.WritePacket([]byte("announcement")) }()
				synctest.Wait()
				c.meanwhile(a, l)
				n.let <- struct{}{}
				synctest.Wait()
				if c.then != nil {
					if n := n.packets.Load(); n != 1 {
						t.Errorf("%d packets, though the gate is shut", n)
					}
					c.then(l, cancel)
					synctest.Wait()
				}
				if sent := n.packets.Load(); sent != c.sent {
					t.Errorf("%d packets, want %d", sent, c.sent)
				}
				close(n.let)
				if err := <-done; err != c.err {
					t.Errorf("error %v, want %v", err, c.err)
				}
			})
		})
	}
}

// handshake is a segment without data between a guest, 10.0.0.1:80, and its client.
func handshake(toGuest bool, flags uint8, seq, ack uint32) []byte {
	f := make([]byte, packet.EthernetLen+packet.IPv4Len+packet.TCPLen)
	ends := []byte{10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 0, 99}
	if toGuest {
		ends = []byte{10, 0, 0, 2, 10, 0, 0, 1, 0, 99, 0, 80}
	}
	f[12], f[14], f[17], f[23], f[46], f[47] = 8, 0x45, 40, packet.ProtoTCP, 5<<4, flags
	copy(f[26:], ends)
	h := packet.TCP(f[34:])
	h.SetSeq(seq)
	h.SetAck(ack)
	binary.BigEndian.PutUint16(h[14:], 1000) // the window
	return f
}

// A script is a network that brings packets, and then nothing.
type script struct{ packets [][]byte }

func (*script) WritePacket([]byte) error { return nil }
func (s *script) ReadPacket() ([]byte, error) {
	if len(s.packets) == 0 {
		return nil, errors.New("there is none")
	}
	p := s.packets[0]
	s.packets = s.packets[1:]
	return p, nil
}

// What a client sends before its handshake is translated comes again, and does not reach the
// guest before that.
func TestWhatCannotBeTranslatedYetDoesNotReachTheGuest(t *testing.T) {
	r := filter.NewRewriter(filter.RewriterConfig{})
	r.Inbound(handshake(true, packet.SYN, 500, 0), 0)
	r.Outbound(handshake(false, packet.SYN|packet.ACK, 9000, 501), 0)
	if err := r.Failover(); err != nil {
		t.Fatal(err)
	}
	e := new(filter.Edge)
	e.Adopt(r)
	early, first := handshake(true, packet.ACK, 503, 1001), handshake(true, packet.ACK, 501, 1001)
	u, _ := newUplink(&script{[][]byte{early, first}}, e, 0, false)
	p, err := u.ReadPacket()
	if err != nil {
		t.Fatal(err)
	}
	if h := packet.TCP(p[34:]); h.Seq() != 501 || h.Ack() != 9001 {
		t.Errorf("the guest gets %d/%d", h.Seq(), h.Ack())
	}
	if _, err := u.ReadPacket(); err == nil {
		t.Error("and something else")
	}
}

// The host that has taken over is protected again, and the client's answer tells what the next host
// has to know too. The answer is not delivered before a checkpoint has that, which is asked for.
func TestAnAnswerWaitsForTheCheckpointThatCarriesWhatItTells(t *testing.T) {
	for name, c := range map[string]struct {
		continuous, promoted, alone bool
	}{
		"compared": {}, "continuous": {continuous: true}, "promoted": {promoted: true}, "alone again": {alone: true},
	} {
		t.Run(name, func(t *testing.T) {
			asked := 0
			deliver := func([]byte) error { return nil }
			cfg := PrimaryConfig{VM: still{}, Deliver: deliver, Continuous: c.continuous, RequestCheckpoint: func(event.Cause) { asked++ }}
			s := NewSecondary(SecondaryConfig{VM: still{}, Deliver: deliver})
			s.rewriter.Inbound(handshake(true, packet.SYN, 500, 0), 0)
			s.rewriter.Outbound(handshake(false, packet.SYN|packet.ACK, 9000, 501), 0)
			p := NewPrimary(cfg)
			if c.promoted {
				p, _ = s.Promote(cfg)
			} else {
				s.HandOver(p.edge)
			}
			must := func(errs ...error) {
				t.Helper()
				if err := errors.Join(errs...); err != nil {
					t.Fatal(err)
				}
			}
			must(p.Pause(t.Context()), p.Mark(0), p.Received(0))
			comes := func() bool {
				u, _ := newUplink(&script{[][]byte{handshake(true, packet.ACK, 501, 1001)}}, p.edge, 0, false)
				got, err := u.ReadPacket()
				if err == nil && packet.TCP(got[34:]).Ack() != 9001 {
					t.Errorf("the guest gets %d", packet.TCP(got[34:]).Ack())
				}
				return err == nil
			}
			if comes() || asked != 1 {
				t.Errorf("before the checkpoint it is delivered, or %d checkpoints are asked for", asked)
			}
			if c.alone {
				must(p.Failover())
			} else {
				must(p.Mark(1))
				if comes() {
					t.Error("before the receipt it is delivered")
				}
				must(p.Received(1))
			}
			if !comes() || asked != 1 {
				t.Errorf("then it is not delivered, or %d checkpoints are asked for", asked)
			}
		})
	}
}

// still is a VM that does nothing.
type still struct{}

func (still) Pause(context.Context) error  { return nil }
func (still) Resume(context.Context) error { return nil }
