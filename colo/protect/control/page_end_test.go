package control

import (
	"context"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/watch"
)

// one is a listener with one connection.
type one struct {
	conn   chan net.Conn
	closed chan struct{}
}

func (l one) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l one) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l one) Addr() net.Addr { return new(net.TCPAddr) }

// A host ends when its job does. Whoever has reached its page, and never says all that he asks for,
// must not hold that up.
func TestAStrangerWhoIsStillAskingDoesNotHoldTheEndOfAPageUp(t *testing.T) {
	for _, said := range []string{"", "GET / HT"} {
		synctest.Test(t, func(t *testing.T) {
			l := one{make(chan net.Conn), make(chan struct{})}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error)
			go func() { ended <- servePage(ctx, l, watch.New(watch.Config{Job: newJob(protect.Alone)})) }()
			there, here := net.Pipe()
			l.conn <- here
			if said != "" {
				if _, err := there.Write([]byte(said)); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Wait()
			begun := time.Now()
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if took := time.Since(begun); took > time.Second {
				t.Errorf("%q holds it up for %v", said, took)
			}
			there.Close()
		})
	}
}
