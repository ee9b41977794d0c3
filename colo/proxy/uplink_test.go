package proxy

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/filter"
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
