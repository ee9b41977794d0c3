package lanes

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// patience is a Limit that looks again and again.
type patience struct {
	d     time.Duration
	looks int
	end   func(moved bool, looks int) error
}

func (p *patience) Deadline() time.Time {
	if p.d == 0 {
		return time.Time{}
	}
	return time.Now().Add(p.d)
}

func (p *patience) Late(moved bool) error {
	p.looks++
	return p.end(moved, p.looks)
}

func TestAWaitIsAsLongAsItsLimitSays(t *testing.T) {
	third := func(first bool) func(bool, int) error {
		return func(moved bool, looks int) error {
			switch {
			case moved != (first && looks == 1):
				return fmt.Errorf("moved %v at look %d", moved, looks)
			case looks == 3:
				return os.ErrDeadlineExceeded
			}
			return nil
		}
	}
	t.Run("sender", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			defer b.Close()
			s, err := NewSender(SenderConfig{Conns: []io.WriteCloser{a}, ID: id, Limit: &patience{d: time.Second, end: third(false)}})
			if err != nil {
				t.Fatal(err)
			}
			s.Start()
			defer s.Close()
			begun := time.Now()
			var got error
			for i := 0; got == nil; i++ {
				got = s.SendPage("a", uint64(i%100)*ram.PageSize, pageOf(0, i))
			}
			if took := time.Since(begun); !errors.Is(got, os.ErrDeadlineExceeded) || took != 3*time.Second {
				t.Errorf("%v after %v", got, took)
			}
			if err := s.Sync(); err != got {
				t.Errorf("Sync = %v", err)
			}
		})
	})
	t.Run("receiver", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			defer a.Close()
			v := NewReceiver(ReceiverConfig{Conns: []io.ReadCloser{b}, ID: id, Limit: &patience{d: time.Second, end: third(true)}})
			v.Start()
			defer v.Close()
			begun := time.Now()
			if err := v.Begin(); err != nil {
				t.Fatal(err)
			}
			go func() {
				time.Sleep(time.Millisecond)
				a.Write(lane(t, multifd.Init{UUID: id}.Put))
			}()
			if err, took := v.Sync(), time.Since(begun); !errors.Is(err, os.ErrDeadlineExceeded) || took != 3*time.Second {
				t.Errorf("%v after %v", err, took)
			}
			// The other side does not hear of it before they are closed.
			a.SetWriteDeadline(time.Now().Add(time.Second))
			if _, err := a.Write(make([]byte, 1<<20)); errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the connection is closed: %v", err)
			}
		})
	})
	t.Run("for ever", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe() // nobody reads what a writes, and nobody writes to b's other end
			c, d := net.Pipe()
			defer b.Close()
			defer c.Close()
			s, err := NewSender(SenderConfig{Conns: []io.WriteCloser{a}, Limit: &patience{}})
			if err != nil {
				t.Fatal(err)
			}
			v := NewReceiver(ReceiverConfig{Conns: []io.ReadCloser{d}, Limit: &patience{}})
			s.Start()
			v.Start()
			defer s.Close()
			defer v.Close()
			done := make(chan error)
			go func() { done <- s.Sync() }()
			time.Sleep(1000 * time.Hour)
			s.Spoil(errEnough)
			if err := <-done; err != errEnough {
				t.Error(err)
			}
			go func() { done <- errors.Join(v.Begin(), v.Sync()) }()
			time.Sleep(1000 * time.Hour)
			v.Spoil(errEnough)
			if err := <-done; !errors.Is(err, errEnough) {
				t.Error(err)
			}
		})
	})
}

var errEnough = errors.New("enough")

func TestAPacketThatDoesNotLeaveIsStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		defer b.Close()
		failed := make(chan error, 1)
		s, err := NewSender(SenderConfig{Conns: []io.WriteCloser{a}, Patience: time.Minute, Fail: func(err error) { failed <- err }})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		defer s.Close()
		if err := <-failed; !errors.Is(err, ErrStuck) {
			t.Error(err)
		}
		if err := s.Sync(); !errors.Is(err, ErrStuck) {
			t.Error(err)
		}
	})
}
