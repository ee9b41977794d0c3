package heartbeat

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	interval = 100 * time.Millisecond
	timeout  = 500 * time.Millisecond
)

func TestMonitorIsLostAtItsDeadlineAndNotBefore(t *testing.T) {
	at := time.Unix(100, 0)
	m := Monitor{Timeout: timeout}
	m.Beat(at)
	m.Beat(at.Add(interval))
	m.Beat(at) // time does not go back
	want := at.Add(interval + timeout)
	if d := m.Deadline(); !d.Equal(want) {
		t.Errorf("deadline %v, want %v", d, want)
	}
	if m.Lost(want.Add(-1)) || !m.Lost(want) {
		t.Error("lost before the deadline, or not at it")
	}
}

func TestMonitorExcusesAPeerWhenWeWereAsleep(t *testing.T) {
	m := Monitor{Timeout: timeout}
	m.Beat(time.Unix(100, 0))
	if m.Excuse(m.Deadline().Add(interval), interval) {
		t.Error("a timer that is a little late excuses nothing")
	}
	woke := m.Deadline().Add(time.Hour)
	if !m.Excuse(woke, interval) || m.Lost(woke) {
		t.Error("a peer is lost because we were stopped for an hour")
	}
	if d := m.Deadline(); !d.Equal(woke.Add(interval)) {
		t.Errorf("the excuse holds until %v, want %v", d, woke.Add(interval))
	}
}

func TestMonitorExcusesOnlySoOften(t *testing.T) {
	const grace = 200 * time.Millisecond
	m := Monitor{Timeout: time.Second}
	late := func(limit int) (n int) { // how often a look that is late is an excuse
		for n < limit && m.Excuse(m.Deadline().Add(grace+1), grace) {
			n++
		}
		return n
	}
	m.Beat(time.Unix(0, 0))
	const most = 3 // as the comment of Excuse says
	if n := late(1000); n != most {
		t.Errorf("a silent peer is excused %d times in a row, want %d", n, most)
	}
	m.Beat(m.Deadline())
	if n := late(1000); n != most {
		t.Errorf("a peer that was heard again is excused %d times, want %d", n, most)
	}
}

// start runs Run on c in the bubble.
func start(ctx context.Context, c io.ReadWriteCloser) <-chan error {
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c, interval, timeout) }()
	return done
}

func TestTwoPeersHearEachOtherUntilOneLeaves(t *testing.T) {
	long := time.Hour
	if testing.Short() {
		long = 10 * time.Minute
	}
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		ctx, cancel := context.WithCancelCause(t.Context())
		da, db := start(ctx, a), start(t.Context(), b)
		time.Sleep(long)
		select {
		case err := <-da:
			t.Fatalf("a ended: %v", err)
		case err := <-db:
			t.Fatalf("b ended: %v", err)
		default:
		}
		why := errors.New("maintenance")
		cancel(why)
		if err := <-da; err != why {
			t.Errorf("a: %v, want the cause of its end", err)
		}
		if err := <-db; err != ErrGoodbye {
			t.Errorf("b: %v, want a goodbye", err)
		}
	})
}

// A peer begins to beat when it knows of the connection and is ready. Only that may take longer.
func TestAFirstBeatMayTakeLongerThanTheOnesAfterIt(t *testing.T) {
	const first = 20 * timeout
	for _, begins := range []time.Duration{0, timeout / 2, first - 1, first} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			defer b.Close()
			go io.Copy(io.Discard, b)
			begin, done := time.Now(), make(chan error, 1)
			go func() { done <- Watch(t.Context(), a, Config{Interval: interval, Timeout: timeout, First: first}) }()
			want := first
			if time.Sleep(begins); begins < first {
				b.Write([]byte{beat})
				want = begins + timeout
			}
			if err := <-done; err != ErrLost {
				t.Errorf("%v, want ErrLost", err)
			}
			if d := time.Since(begin); d != want {
				t.Errorf("a peer that beats once, after %v, is lost after %v, want %v", begins, d, want)
			}
		})
	}
}

func TestSilentPeerIsLostAfterTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go io.Copy(io.Discard, b) // reads, says nothing
		begin := time.Now()
		err := <-start(t.Context(), a)
		if err != ErrLost {
			t.Errorf("%v, want ErrLost", err)
		}
		if d := time.Since(begin); d != timeout {
			t.Errorf("lost after %v, want %v", d, timeout)
		}
		b.Close()
	})
}

// A peer that is silent, and no other, hears no end before Silent was called.
func TestSilentIsCalledBeforeASilentPeerHearsTheEnd(t *testing.T) {
	for name, c := range map[string]struct {
		ends func(context.CancelFunc, net.Conn)
		want bool
	}{
		"silence":              {func(context.CancelFunc, net.Conn) {}, true},
		"the connection's end": {func(_ context.CancelFunc, b net.Conn) { b.Close() }, false},
		"a goodbye":            {func(_ context.CancelFunc, b net.Conn) { b.Write([]byte{goodbye}) }, false},
		"the end of the context": {func(cancel context.CancelFunc, b net.Conn) {
			cancel()
			b.SetReadDeadline(time.Time{})
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := net.Pipe()
				defer b.Close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				ended, called := make(chan struct{}), false
				go func() { defer close(ended); io.Copy(io.Discard, b) }()
				done := make(chan error)
				go func() {
					done <- Watch(ctx, a, Config{Interval: interval, Timeout: timeout, Silent: func() {
						called = true
						select {
						case <-ended:
							t.Error("it has heard the end")
						case <-time.After(timeout):
						}
					}})
				}()
				synctest.Wait()
				c.ends(cancel, b)
				<-done
				if called != c.want {
					t.Errorf("called: %v", called)
				}
			})
		})
	}
}

func TestPeerThatReadsNothingIsLostToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe() // a's writes block for ever
		if err := <-start(t.Context(), a); err != ErrLost {
			t.Errorf("%v, want ErrLost", err)
		}
		b.Close()
	})
}

func TestBeatsPutTheDeadlineOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go io.Copy(io.Discard, b)
		begin := time.Now()
		done := start(t.Context(), a)
		for range 3 {
			time.Sleep(timeout - time.Millisecond)
			b.Write([]byte{beat, beat})
		}
		if err := <-done; err != ErrLost {
			t.Errorf("%v, want ErrLost", err)
		}
		if d, want := time.Since(begin), 4*timeout-3*time.Millisecond; d != want {
			t.Errorf("lost after %v, want %v", d, want)
		}
		b.Close()
	})
}

func TestBrokenConnectionIsALossWithItsReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		done := start(t.Context(), a)
		time.Sleep(interval / 2)
		b.Close()
		if err := <-done; !errors.Is(err, ErrLost) || !errors.Is(err, io.EOF) {
			t.Errorf("%v, want ErrLost and io.EOF", err)
		}
	})
}

func TestAnythingElseIsNoHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		go io.Copy(io.Discard, b)
		done := start(t.Context(), a)
		b.Write([]byte("\x00\x00\x00\x01"))
		if err := <-done; !errors.Is(err, ErrProtocol) {
			t.Errorf("%v, want ErrProtocol", err)
		}
		b.Close()
	})
}

func TestLeavingAPeerThatReadsNothingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := net.Pipe()
		ctx, cancel := context.WithCancel(t.Context())
		done := start(ctx, a)
		time.Sleep(interval)
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("%v, want context.Canceled", err)
		}
		b.Close()
	})
}

func TestTimeoutMustExceedTheInterval(t *testing.T) {
	a, b := net.Pipe()
	if err := Run(t.Context(), a, timeout, timeout); err == nil || errors.Is(err, ErrLost) {
		t.Errorf("%v, want a complaint", err)
	}
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("%v: the connection was to be closed", err)
	}
}

// A goodbye that is followed by the end of the connection is heard even if a
// write fails first.
func TestGoodbyeIsHeardOverALoopbackSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Run(ctx, a, 5*time.Millisecond, 20*time.Second); err != context.Canceled {
			t.Errorf("a: %v", err)
		}
	})
	wg.Go(func() {
		if err := Run(t.Context(), b, 5*time.Millisecond, 20*time.Second); err != ErrGoodbye {
			t.Errorf("b: %v", err)
		}
	})
	cancel()
	wg.Wait()
}

func TestPulseIsAliveFromTheFirstBeatToTheTimeoutAfterTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p Pulse
		a, b := net.Pipe()
		go io.Copy(io.Discard, b)
		done := make(chan error, 1)
		go func() { done <- p.Run(t.Context(), a, interval, timeout) }()
		synctest.Wait()
		if p.Alive() {
			t.Error("alive before the peer was heard")
		}
		b.Write([]byte{beat})
		synctest.Wait()
		time.Sleep(timeout - time.Millisecond)
		if !p.Alive() {
			t.Error("not alive within the timeout after a beat")
		}
		time.Sleep(time.Millisecond)
		if p.Alive() {
			t.Error("alive after the timeout")
		}
		if err := <-done; err != ErrLost {
			t.Errorf("%v, want ErrLost", err)
		}
		b.Close()

		a, b = net.Pipe()
		go io.Copy(io.Discard, b)
		go func() { done <- p.Run(t.Context(), a, interval, timeout) }()
		b.Write([]byte{beat, goodbye})
		if err := <-done; err != ErrGoodbye {
			t.Errorf("%v, want ErrGoodbye", err)
		}
		if p.Alive() {
			t.Error("alive after a goodbye")
		}
		b.Close()
	})
}
