// Package strangers bounds the connections of those who have not shown yet what they have
// come for, so that whoever connects and says nothing keeps nobody out.
package strangers

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// A Room has the connections of strangers. One more than Max ends the oldest. A connection that
// has shown what it is for leaves the room, and is ended for no other from then on. The methods
// of a Room may be called from any goroutine, Accept from one at a time.
type Room struct {
	// Max is how many strangers there are at a time; it is above zero.
	Max int
	// Warn, if not nil, is called with the first of the errors in a row by which nobody can be
	// accepted for now.
	Warn func(error)

	mu   sync.Mutex
	here []net.Conn // the oldest first
	shut bool
}

const (
	firstPause = 5 * time.Millisecond // after an error of accepting; then twice as long each time
	maxPause   = time.Second
)

// Accept returns the next connection of l, which has entered the room. Errors that pass, such as
// that this process has no descriptor left, do not end it: it tries again, after a pause that
// grows. It returns net.ErrClosed once l is closed, and the cause of ctx if that has ended
// meanwhile; it does not close l itself.
func (r *Room) Accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	pause := time.Duration(0)
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			if r.Enter(conn) {
				return conn, nil
			}
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, net.ErrClosed):
			return nil, err
		default:
			if pause == 0 && r.Warn != nil {
				r.Warn(err)
			}
			pause = min(max(2*pause, firstPause), maxPause)
			if err := wait.For(ctx, pause); err != nil {
				return nil, err
			}
		}
	}
}

// Enter takes conn in as the newest stranger. If there are more than Max then, the oldest is
// closed. In a room that is shut conn itself is closed, and Enter returns false.
func (r *Room) Enter(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.shut {
		conn.Close()
		return false
	}
	r.here = append(r.here, conn)
	if len(r.here) > r.Max {
		r.here[0].Close()
		r.here = slices.Delete(r.here, 0, 1)
	}
	return true
}

// Leave is called when conn has shown what it is for, or has ended. It returns false if conn is
// not here, as where the room has closed it: then it is of no use.
func (r *Room) Leave(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.here, conn)
	if i < 0 {
		return false
	}
	r.here = slices.Delete(r.here, i, i+1)
	return true
}

// Shut closes all strangers, and lets nobody in until Open is called.
func (r *Room) Shut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = true
	for _, conn := range r.here {
		conn.Close()
	}
	r.here = nil
}

// Open undoes Shut.
func (r *Room) Open() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = false
}
