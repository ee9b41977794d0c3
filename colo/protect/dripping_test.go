package protect

import (
	"bytes"
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// drips writes b to a connection, a byte each second, until it ends, and returns how many have gone.
func drips(conn net.Conn, b []byte) (n int) {
	for i := range b {
		if _, err := conn.Write(b[i : i+1]); err != nil {
			return n
		}
		n++
		time.Sleep(time.Second)
	}
	return n
}

// A hello that comes a byte at a time has no more time than one that does not come, in either
// direction, and keeps nobody waiting.
func TestAHelloThatDripsHasTheTimeOfOneHello(t *testing.T) {
	var whole bytes.Buffer
	if err := writeHello(&whole, hello{Channel: chControl, Guest: "g", Host: "x"}); err != nil {
		t.Fatal(err)
	}
	t.Run("of those who come", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f := newFabric()
			p, err := NewPort(f.listen("b"), PortConfig{Insecure: true})
			if err != nil {
				t.Fatal(err)
			}
			stop := served(t, p)
			p.register("g", new(sink))
			const strangers = maxGreeting - 1
			gone := make(chan int, strangers)
			for range strangers {
				conn, err := f.dial(t.Context(), "x", "b")
				if err != nil {
					t.Fatal(err)
				}
				go func() { gone <- drips(conn, whole.Bytes()); conn.Close() }()
			}
			time.Sleep(greetTime / 2)
			c := Config{Peer: Peer{PortConfig: PortConfig{Insecure: true}, Dialer: func(ctx context.Context) (net.Conn, error) { return f.dial(ctx, "a", "b") }}}
			begin := time.Now()
			conn, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: "g"})
			if err != nil || time.Since(begin) != 0 {
				t.Fatalf("a host among %d strangers: %v after %v", strangers, err, time.Since(begin))
			}
			conn.Close()
			for range strangers {
				if n := <-gone; n > int(greetTime/time.Second)+1 { // the first at once
					t.Fatalf("a stranger has sent %d bytes, one a second", n)
				}
			}
			stop()
		})
	})
	t.Run("of those who answer", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			go func() {
				readHello(far)
				drips(far, whole.Bytes())
				far.Close()
			}()
			c := Config{Peer: Peer{PortConfig: PortConfig{Insecure: true}, Dialer: func(context.Context) (net.Conn, error) { return near, nil }}}
			begin := time.Now()
			_, _, err := dial(t.Context(), &c, hello{Channel: chControl, Guest: "g"})
			if d := time.Since(begin); err == nil || d != greetTime {
				t.Errorf("%v after %v, want an error after %v", err, d, greetTime)
			}
			time.Sleep(2 * time.Second) // the other side finds out
		})
	})
}
