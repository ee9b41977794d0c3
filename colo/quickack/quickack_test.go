package quickack_test

import (
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/qemufile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair returns a TCP connection whose first side leaves Nagle's algorithm on, as a
// stock QEMU does.
func pair(t testing.TB) (nagle, other net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nagle, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := nagle.(*net.TCPConn).SetNoDelay(false); err != nil {
		t.Fatal(err)
	}
	if other, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nagle.Close(); other.Close() })
	return nagle, other
}

func TestWhatIsWrittenArrives(t *testing.T) {
	nagle, other := pair(t)
	conn := quickack.Conn(other)
	w, ok := conn.(qemufile.BuffersWriter)
	if !ok {
		t.Skip("nothing to do on this system")
	}
	for range 3 {
		if _, err := nagle.Write([]byte("request")); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 7)
		if _, err := io.ReadFull(conn, p); err != nil || string(p) != "request" {
			t.Fatalf("%q, %v", p, err)
		}
		if n, err := w.WriteBuffers(&net.Buffers{[]byte("re"), []byte("ply")}); n != 5 || err != nil {
			t.Fatalf("%d, %v", n, err)
		}
		if _, err := io.ReadFull(nagle, p[:5]); err != nil || string(p[:5]) != "reply" {
			t.Fatalf("%q, %v", p, err)
		}
	}
	if err := nagle.Close(); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
}

func TestAReadAllocatesNothing(t *testing.T) {
	nagle, other := pair(t)
	conn := quickack.Conn(other)
	p := make([]byte, 4)
	if n := testing.AllocsPerRun(200, func() {
		if _, err := nagle.Write(p); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(p); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestOtherConnectionsAreLeftAlone(t *testing.T) {
	a, b := net.Pipe()
	defer b.Close()
	defer a.Close()
	if quickack.Conn(a) != a {
		t.Error("a pipe was wrapped")
	}
}

// BenchmarkSmallMessages is two small messages of a peer with Nagle's algorithm
// and an answer, with and without prompt acknowledgement (medians, in
// microseconds).
func BenchmarkSmallMessages(b *testing.B) {
	for _, c := range []struct {
		name string
		wrap func(net.Conn) net.Conn
	}{
		{"delayed", func(c net.Conn) net.Conn { return c }},
		{"prompt", quickack.Conn},
	} {
		b.Run(c.name, func(b *testing.B) {
			nagle, other := pair(b)
			conn := c.wrap(other)
			done := make(chan struct{})
			go func() {
				defer close(done)
				p := make([]byte, 8)
				for {
					if _, err := io.ReadFull(conn, p); err != nil {
						return
					}
					if _, err := conn.Write(p[:4]); err != nil {
						return
					}
				}
			}()
			p := make([]byte, 4)
			var times []time.Duration
			for b.Loop() {
				began := time.Now()
				nagle.Write(p)
				nagle.Write(p)
				if _, err := io.ReadFull(nagle, p); err != nil {
					b.Fatal(err)
				}
				times = append(times, time.Since(began))
			}
			nagle.Close()
			<-done
			slices.Sort(times)
			b.ReportMetric(float64(times[len(times)/2])/1e3, "µs")
			b.ReportMetric(0, "ns/op")
		})
	}
}
