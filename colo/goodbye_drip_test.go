package colo_test

import (
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"
)

// drip is a connection that brings a byte at a time, and slowly once it is slow.
type drip struct {
	*colotest.Conn
	every time.Duration
	slow  atomic.Bool
}

func (d *drip) Read(p []byte) (int, error) {
	n, err := d.Conn.Read(p[:min(1, len(p))])
	if err == nil && d.slow.Load() {
		time.Sleep(d.every)
	}
	return n, err
}

// A secondary whose goodbye comes a byte at a time, each in time, does not keep a primary that wants to
// leave for longer than one that is silent.
func TestAGoodbyeThatComesAByteAtATimeIsNotWaitedForLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 10 * time.Second
		o := options{primary: func(c *colo.PrimaryConfig) { c.CheckpointTimeout, c.CheckpointDelay = timeout, time.Second }}
		x := newPair(t, o)
		d := &drip{Conn: x.pc, every: timeout - time.Second}
		x.join(t, io.ReadWriteCloser(d), x.sc, o)
		refuse(event.ModeSecondary)(x)
		defer event.Subscribe(&x.p.bus, func(c event.CheckpointCommit) {
			if c.Epoch == 2 {
				d.slow.Store(true)
				x.primary.End()
			}
		})()
		x.start(t.Context())
		time.Sleep(2500 * time.Millisecond)
		begin := time.Now()
		x.p.wait()
		// The reading goroutine is in the midst of a byte when it is over.
		if took := time.Since(begin); !d.slow.Load() || took > timeout+d.every || x.p.err != nil {
			t.Errorf("the primary has ended after %v, with %v", took, x.p.err)
		}
		x.s.wait()
		x.wantWhole(t)
		x.close()
	})
}

func TestTheReasonOfAGoodbyeIsReadInOneTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 10 * time.Second
		a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
		l := colo.NewLink(a, timeout)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, c := range goodbye(strings.Repeat("x", 1024)) {
				time.Sleep(timeout - time.Second)
				if _, err := b.Write([]byte{c}); err != nil {
					return
				}
			}
		}()
		begin := time.Now()
		err := l.Expect(colo.CheckpointReply)
		if took := time.Since(begin); !errors.Is(err, colo.ErrGoodbye) || took > 5*timeout {
			t.Errorf("read for %v: %v", took, err)
		}
		l.Close()
		b.Close()
		<-done
	})
}
