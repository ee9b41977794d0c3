package protect

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
)

// A hasty is a connection that takes its time, and along, when it is closed, what has
// not arrived yet, as a TCP connection does that is reset.
type hasty struct {
	net.Conn
	in     chan []byte
	closed chan struct{}
	once   sync.Once
}

func newHasty(c net.Conn, late time.Duration) *hasty {
	h := &hasty{Conn: c, in: make(chan []byte, 1<<12), closed: make(chan struct{})}
	go func() {
		for {
			select {
			case b := <-h.in:
				select {
				case <-time.After(late):
				case <-h.closed:
					return
				}
				h.Conn.Write(b)
			case <-h.closed:
				return
			}
		}
	}()
	return h
}

func (h *hasty) Write(b []byte) (int, error) {
	select {
	case h.in <- append([]byte(nil), b...):
		return len(b), nil
	case <-h.closed:
		return 0, net.ErrClosed
	}
}

func (h *hasty) Close() error {
	h.once.Do(func() { close(h.closed) })
	return h.Conn.Close()
}

// A host that leaves on purpose closes its connections when the other has heard so: what
// is on its way then could be lost with them, and the other would take it for a death.
// Here nobody but its word keeps the secondary from going on.
func TestAHostThatLeavesOnPurposeIsHeardBeforeItsConnectionsClose(t *testing.T) {
	for name, leave := range map[string]func(j *Job, ctx context.Context) error{
		"complete": (*Job).Complete,
		"cancel":   (*Job).Cancel,
		"pause":    func(j *Job, ctx context.Context) error { return j.Pause(ctx, "for a while") },
	} {
		if testing.Short() && name != "complete" {
			continue
		}
		bubble(t, name, func(t *testing.T, w *world) {
			own := new(failovertest.Store)
			if ok, err := own.Swap(t.Context(), failover.Record{}, failover.Record{Generation: 1}); !ok || err != nil {
				t.Fatal(ok, err)
			}
			b := w.boot("b", false, func(c *Config) { c.Arbiter = failover.NewStoreArbiter(own) })
			a := w.boot("a", true, func(c *Config) {
				dialBy(c, func(conn net.Conn) net.Conn { return newHasty(conn, time.Millisecond) })
			})
			a.is(Protected)
			b.is(Following)
			time.Sleep(300 * time.Millisecond)
			if err := leave(a.job, t.Context()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
			if s := b.states(); strings.Contains(s, Alone.String()) || b.job.State() != Waiting {
				t.Errorf("b: %s", s)
			}
			if q := b.job.Query(); errors.Is(q.LastError, ErrCompleted) != (name == "complete") || name != "complete" && q.LastError != nil || q.Reason == "" {
				t.Errorf("b: %v, %q", q.LastError, q.Reason)
			}
			if name == "complete" {
				<-a.done
				a.leave()
			} else {
				a.halt()
			}
			b.halt()
		})
	}
}

// Whoever leaves waits for no longer than Lost for a host that does not hear it.
func TestAHostThatLeavesOnPurposeDoesNotWaitForOneThatIsSilent(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		b.kill(true)
		since := time.Now()
		if err := a.job.Cancel(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.is(Cancelled)
		if took := time.Since(since); took > sayTime+2*a.job.cfg.Lost {
			t.Errorf("it took %v", took)
		}
		b.bury()
		a.halt()
	})
}

// What the arbiter has refused a secondary is somebody else's generation, and none that the
// secondary could give back.
func TestASecondaryThatIsRefusedCallsNoGenerationUnused(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		if n := (&session{peer: &peer{generation: 4}}).unused(failover.ErrRefused); n != 5 {
			t.Errorf("one that was not refused calls %d unused", n)
		}
		a, b := w.protected()
		s := b.job.session()
		for taken := false; !taken; { // a renews meanwhile
			r, err := w.store.Load(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			next := r
			next.Generation, next.Holder, next.Token = r.Generation+1, "c", "c"
			if taken, err = w.store.Swap(t.Context(), r, next); err != nil {
				t.Fatal(err)
			}
		}
		a.is(Waiting)
		b.is(Waiting)
		if n := s.unused(failover.ErrRefused); n != 0 {
			t.Errorf("generation %d, which is of c, is called unused", n)
		}
		b.halt()
		a.halt()
	})
}

// A reset is a connection that delivers late what it reads, and nothing of it any more once
// the other end has closed it, as a TCP connection does that is reset.
type reset struct {
	net.Conn
	in     chan []byte
	closed chan struct{}
	once   sync.Once
	rest   []byte
}

func newReset(c net.Conn, late time.Duration) *reset {
	r := &reset{Conn: c, in: make(chan []byte), closed: make(chan struct{})}
	end := func() { r.once.Do(func() { close(r.closed) }) }
	queue := make(chan []byte, 1<<12)
	go func() {
		defer end()
		for {
			b := make([]byte, 64<<10)
			n, err := c.Read(b)
			if err != nil {
				return
			}
			queue <- b[:n]
		}
	}()
	go func() {
		for {
			select {
			case b := <-queue:
				select {
				case <-time.After(late):
				case <-r.closed:
					return
				}
				select {
				case r.in <- b:
				case <-r.closed:
					return
				}
			case <-r.closed:
				return
			}
		}
	}()
	return r
}

func (r *reset) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		select {
		case r.rest = <-r.in:
		case <-r.closed:
			return 0, net.ErrClosed
		}
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// The deadlines of reads are not needed here: the connections end.
func (r *reset) SetDeadline(t time.Time) error   { return r.Conn.SetWriteDeadline(t) }
func (r *reset) SetReadDeadline(time.Time) error { return nil }

// The host that has taken the guest over ends its session, and closes its connections, when
// the other has heard that it runs: the word would be lost with them otherwise, and the
// switchover would be said to have failed.
func TestAHostThatTakesTheGuestIsHeardBeforeItsConnectionsClose(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		a := w.boot("a", true, func(c *Config) {
			dialBy(c, func(conn net.Conn) net.Conn { return newReset(conn, time.Millisecond) })
		})
		a.is(Protected)
		b.is(Following)
		time.Sleep(300 * time.Millisecond)
		if err := a.job.Switchover(t.Context()); err != nil {
			t.Error(err)
		}
		b.is(Protected)
		a.is(Following)
		if n := a.job.Query().Stats.Switchovers; n != 1 {
			t.Errorf("%d switchovers", n)
		}
		b.halt()
		a.halt()
	})
}
