package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// A connection over which nobody says who it is ends; that of the primary that the disk has
// adopted may be silent for days.
func TestASilentControlConnectionEndsUnlessItsPrimaryWasAdopted(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			a, b := net.Pipe()
			s := new(secondary)
			v := &visit{s: s, conn: b}
			if adopted {
				s.present = v
			}
			ended := make(chan struct{})
			begin := time.Now()
			go func() {
				serveControl(t.Context(), b, v.arm, func([]string) (string, error) { return "fine", nil })
				close(ended)
			}()
			if adopted {
				time.Sleep(48 * time.Hour)
				c := newControl(a)
				if _, err := c.ask(t.Context(), "checkpoint 1", "fine"); err != nil {
					t.Error(err)
				}
				a.Close()
				<-ended
				return
			}
			<-ended
			if d := time.Since(begin); d != helloTimeout {
				t.Errorf("it ended after %v", d)
			}
			a.Close()
		})
	}
}

// Whoever talks without end, and is never adopted, would keep the primary from one of the few
// connections that there may be.
func TestAControlConnectionThatOnlyTalksEndsToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, replaced := range []bool{false, true} { // from its first line, or after another primary has come
			a, b := net.Pipe()
			s := new(secondary)
			v := &visit{s: s, conn: b}
			c := newControl(a)
			ended := make(chan time.Time, 1)
			talk := func() error {
				time.Sleep(helloTimeout * 3 / 10)
				_, err := c.ask(t.Context(), "hello", "fine")
				return err
			}
			if replaced {
				s.present = v
			}
			go func() {
				serveControl(t.Context(), b, v.arm, func([]string) (string, error) { return "fine", nil })
				ended <- time.Now()
			}()
			if replaced {
				for range 9 {
					if err := talk(); err != nil {
						t.Fatal(err)
					}
				}
				synctest.Wait() // it waits for the next line
				s.mu.Lock()
				s.present = new(visit)
				s.mu.Unlock()
				if err := talk(); err != nil {
					t.Fatal(err)
				}
			}
			begin, lines := time.Now(), 0
			for talk() == nil {
				if lines++; lines == 100 {
					t.Fatal("it talks on")
				}
			}
			if d := (<-ended).Sub(begin); d != helloTimeout || lines != 3 {
				t.Errorf("replaced: %v: it ended after %v and %d lines", replaced, d, lines)
			}
			a.Close()
		}
	})
}

// Who stops the program does not wait for a secondary that does not answer.
func TestAskingASecondaryEndsWithItsContextOrInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ask := func(ctx context.Context) (time.Duration, error) {
			a, b := net.Pipe()
			defer b.Close()
			go io.Copy(io.Discard, b)
			c := newControl(a)
			defer a.Close()
			begin := time.Now()
			_, err := c.ask(ctx, "checkpoint 1", "loaded 1")
			return time.Since(begin), err
		}
		if d, err := ask(t.Context()); d != controlTimeout || err == nil {
			t.Errorf("after %v: %v", d, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if d, err := ask(ctx); d != time.Second || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after %v: %v", d, err)
		}
	})
}

// visitors is a listener to which connections come as the test wants it.
type visitors struct {
	net.Listener
	come chan net.Conn
}

func (v visitors) Accept() (net.Conn, error) {
	c, ok := <-v.come
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

func TestControlConnectionsAreBoundedInNumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := visitors{come: make(chan net.Conn, 2*maxVisits)}
		for range 2 * maxVisits {
			ln.come <- nil
		}
		var mu sync.Mutex
		now, most, all := 0, 0, 0
		leave := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			serveVisits(t.Context(), ln, func(net.Conn) {
				mu.Lock()
				now++
				all++
				most = max(most, now)
				mu.Unlock()
				<-leave
				mu.Lock()
				now--
				mu.Unlock()
			})
			close(ended)
		}()
		synctest.Wait()
		if now != maxVisits || all != maxVisits {
			t.Errorf("%d connections are served, %d were, want %d", now, all, maxVisits)
		}
		leave <- struct{}{}
		synctest.Wait()
		if now != maxVisits || all != maxVisits+1 {
			t.Errorf("after one has left: %d connections are served, %d were", now, all)
		}
		close(leave)
		close(ln.come)
		<-ended
		if most != maxVisits || all != 2*maxVisits {
			t.Errorf("%d were served, %d at once", all, most)
		}
	})
}

// lacking is a listener whose process has no descriptor left, up to the first connection.
type lacking struct {
	visitors
	times int
}

func (l *lacking) Accept() (net.Conn, error) {
	if l.times++; l.times <= 3 {
		return nil, os.NewSyscallError("accept4", syscall.EMFILE)
	}
	return l.visitors.Accept()
}

// A secondary whose primary cannot connect any more takes no checkpoint for as long as it lives.
func TestControlConnectionsAreServedAgainWhenThereAreDescriptorsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &lacking{visitors: visitors{come: make(chan net.Conn, 1)}}
		here, there := net.Pipe()
		defer there.Close()
		ln.come <- here
		served := make(chan struct{}, 1)
		ended := make(chan struct{})
		go func() {
			serveVisits(t.Context(), ln, func(c net.Conn) { c.Close(); served <- struct{}{} })
			close(ended)
		}()
		time.Sleep(time.Minute)
		select {
		case <-served:
		default:
			t.Error("nobody is served")
		}
		close(ln.come)
		<-ended
	})
}

func TestACheckpointThatIsNoNumberIsRefusedInWords(t *testing.T) {
	_, err := new(secondary).answer(t.Context(), nil, []string{"checkpoint", "two"})
	if err == nil || err.Error() != `the other side names "two" as a checkpoint, want a number` {
		t.Errorf("%v", err)
	}
}
