package migrate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/gocolo/lockstep/vmstate"
)

// exchange is a connection with its return path.
type exchange struct {
	*wire
	bitmaps chan vmstate.Return
	ack     chan struct{}
	ready   chan struct{} // closed when pingReady was answered
	kick    chan struct{} // wakes follow: memory was asked for or placed
	pace    *pacer
	timer   *time.Timer   // of look
	looks   bool          // timer is armed
	done    chan struct{} // closed when the return path has ended and err is set
	quit    chan struct{}
	err     error // nil: SHUT with success
}

// begin takes a connection and reads its return path on a goroutine that end waits for.
func (s *Source) begin(ctx context.Context, c Conn, recovering bool) *exchange {
	x := &exchange{
		wire: open(ctx, c), bitmaps: make(chan vmstate.Return), ack: make(chan struct{}, 1), ready: make(chan struct{}, 1),
		kick: make(chan struct{}, 1), pace: newPacer(),
		done: make(chan struct{}), quit: make(chan struct{}),
	}
	lengths := make(map[string]uint64)
	// Blocks returns the error of its function, and this one returns none.
	_ = s.cfg.Memory.Blocks(func(name string, n uint64) error {
		lengths[name] = n
		return nil
	})
	rr := &vmstate.ReturnReader{
		R: x.r, Recovering: recovering,
		Block: func(name string) (uint64, bool) {
			n, ok := lengths[name]
			return n, ok
		},
	}
	go func() {
		defer close(x.done)
		x.err = s.listen(x, rr)
	}()
	return x
}

// end closes the connection and waits for its goroutine.
func (x *exchange) end() {
	close(x.quit)
	x.close()
	<-x.done
}

// listen reads the return path until SHUT.
func (s *Source) listen(x *exchange, rr *vmstate.ReturnReader) error {
	for {
		m, err := rr.Next()
		switch {
		case err == io.EOF:
			return nil
		case err != nil && m.Type == vmstate.ReturnShut && m.Value != 0:
			return fmt.Errorf("%w: %w", ErrRefused, err)
		case err != nil:
			return err
		}
		switch m.Type {
		case vmstate.ReturnRequestBlock, vmstate.ReturnRequestPages:
			err = s.cfg.Memory.Request(m.Block, m.Start, m.Length)
			x.pace.request(time.Now())
			x.wake()
		case vmstate.ReturnRecvBitmap:
			select {
			case x.bitmaps <- m:
			case <-x.quit:
				return io.ErrClosedPipe
			}
		case vmstate.ReturnPong:
			switch {
			case m.Value == pingRun:
				s.taken.Store(true)
			case m.Value == pingReady:
				select {
				case x.ready <- struct{}{}:
				default:
				}
			case m.Value >= firstPace:
				x.pace.pong(m.Value, time.Now())
				x.wake()
			}
		case vmstate.ReturnResumeAck:
			select {
			case x.ack <- struct{}{}:
			default:
			}
		}
		if err != nil {
			return err
		}
	}
}

// broken returns the error of a return path that has ended, but for a SHUT with success
// that comes before its time.
func (x *exchange) broken() error {
	select {
	case <-x.done:
		if x.err == nil {
			return fmt.Errorf("migrate: %v before the end", vmstate.ReturnShut)
		}
		return x.err
	default:
		return nil
	}
}

// cause returns the error that the other side has sent, if it has, and otherwise err.
func (x *exchange) cause(err error) error {
	if x.w.Err() != nil {
		select {
		case <-x.done:
		case <-time.After(lastWords): // a connection that is broken in one direction only
			x.conn.Close()
			<-x.done
		}
		if errors.Is(x.err, ErrRefused) {
			return x.err
		}
	}
	return err
}

// wake makes follow look again.
func (x *exchange) wake() {
	select {
	case x.kick <- struct{}{}:
	default:
	}
}

// look starts the timer, unless it runs, and returns its channel. When the timer has
// fired the caller sets looks to false.
func (x *exchange) look() <-chan time.Time {
	if x.timer == nil {
		x.timer = time.NewTimer(burstLook)
	} else if !x.looks {
		x.timer.Reset(burstLook)
	}
	x.looks = true
	return x.timer.C
}
