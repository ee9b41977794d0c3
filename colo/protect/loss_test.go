package protect

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover/heartbeat"
)

// Why a host has lost the other one is a sentence that a person understands, in each reason of a
// state and in LastError, where what was noticed first is behind it. It stays there for as long as the
// guest is unprotected by it, whatever else goes wrong meanwhile, which is told beside it.
func TestALossIsToldInWordsUntilTheGuestIsProtectedAgain(t *testing.T) {
	t.Parallel()
	for _, side := range []event.Mode{event.ModePrimary, event.ModeSecondary} {
		for _, silent := range []bool{false, true} {
			name := side.String() + " ends"
			words := "have ended, and it has said nothing: its process has died or was killed, or the network has cut them"
			if silent {
				name = side.String() + " falls silent"
				words = "was silent for 1s: it has died or stands still, or the network between the two hosts is cut"
			}
			bubble(t, name, func(t *testing.T, w *world) {
				w.guest.Interval = 20 * time.Millisecond
				a, b := w.protected()
				time.Sleep(300 * time.Millisecond)
				dies, goesOn := a, b
				if side == event.ModeSecondary {
					dies, goesOn = b, a
				}
				dies.kill(silent)
				goesOn.is(Alone)
				dies.bury()
				before := goesOn.job.Query()
				if before.LastError == nil || !strings.Contains(before.LastError.Error(), words) || silent && !errors.Is(before.LastError, heartbeat.ErrLost) || errors.Unwrap(before.LastError) == nil {
					t.Error(before.LastError)
				}
				for _, line := range strings.Split(goesOn.reasons(), "\n") {
					if strings.HasPrefix(line, "asking ") && !strings.Contains(line, words) || strings.Contains(line, "EOF") || strings.Contains(line, "colo:") {
						t.Error(line)
					}
				}
				time.Sleep(10 * time.Second) // it seeks the other, and does not reach it
				q := goesOn.job.Query()
				if !errors.Is(q.LastError, before.LastError) || !strings.HasPrefix(q.LastError.Error(), before.LastError.Error()+"; since then: ") || !q.LastErrorAt.After(before.LastErrorAt) {
					t.Errorf("%v, at %v", q.LastError, q.LastErrorAt)
				}
				again := w.boot(dies.name, false, nil)
				goesOn.is(Protected)
				again.is(Following)
				w.hearsMore()
				later := errors.New("what comes later")
				goesOn.job.note(later)
				if err := goesOn.job.Query().LastError; err != later {
					t.Errorf("it is protected again, and says %v", err)
				}
				again.halt()
				goesOn.halt()
			})
		}
	}
}

// What is no loss of the other host is told as it is.
func TestWhatIsNoLossIsToldAsItIs(t *testing.T) {
	s := &session{peer: newPeer(hello{Host: "b"})}
	for _, err := range []error{io.EOF, colo.ErrStalled, errBare} {
		if got := s.lossOf(err, time.Second); got != err {
			t.Errorf("%v: %v", err, got)
		}
	}
	s.peer.gone = true
	for _, err := range []error{colo.ErrStalled, errBare} {
		if got := s.lossOf(err, time.Second); got != err {
			t.Errorf("%v: %v", err, got)
		}
	}
	if got := s.lossOf(io.EOF, time.Second); !strings.Contains(got.Error(), "the connections with b have ended") || !errors.Is(got, io.EOF) {
		t.Error(got)
	}
}

// A heart's goodbye may be heard before anything else of how a session ends. Why the other side has ended
// it is told all the same, also where that comes later.
func TestWhyTheOtherSideHasEndedTheSessionIsToldBesideItsGoodbye(t *testing.T) {
	s := &session{peer: newPeer(hello{Host: "b"}), over: t.Context()}
	goodbye := fmt.Errorf("stage disks: %w", heartbeat.ErrGoodbye)
	if got := s.lossOf(goodbye, time.Second); got != goodbye {
		t.Errorf("before it is heard why: %v", got)
	}
	s.lostBy(goodbye)
	s.peer.why = "a reason"
	for _, got := range []error{s.lossOf(goodbye, time.Second), s.lossWith(nil)} {
		if got.Error() != "b has ended the session: a reason" || !errors.Is(got, heartbeat.ErrGoodbye) {
			t.Error(got)
		}
	}
}

// A connection that the other host has ended may tell a write so by another error than a read.
func TestALossThatAWriteHasMetFirstIsToldInWords(t *testing.T) {
	broke := errors.New("the other end is closed")
	s := &session{peer: newPeer(hello{Host: "b"}), wire: &counted{Conn: endedConn{write: broke}}}
	cause := fmt.Errorf("expect checkpoint-reply: %w", broke)
	if got := s.lossOf(cause, time.Second); got != cause {
		t.Errorf("before the connection has ended: %v", got)
	}
	s.wire.Read(nil)
	s.wire.Write(nil)
	for _, cause := range []error{cause, io.EOF} {
		if got := s.lossOf(cause, time.Second); !strings.Contains(got.Error(), "the connections with b have ended") || !errors.Is(got, cause) {
			t.Error(got)
		}
	}
	if got := s.lossOf(errBare, time.Second); got != errBare {
		t.Error(got)
	}
}

// endedConn is a connection that the other end has closed.
type endedConn struct {
	net.Conn
	write error
}

func (endedConn) Read([]byte) (int, error)    { return 0, io.EOF }
func (c endedConn) Write([]byte) (int, error) { return 0, c.write }
