package standby_test

import (
	"net"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// benchSink is a secondary that reads a checkpoint and keeps nothing of it: how
// long QEMU takes to send one, and so the bound for all who receive it.
func benchSink(b *testing.B, pages uint32) taken {
	l, uri := qemutest.Listen(b)
	p := dirtier(b, pages)
	p.Protect(uri, 100*time.Millisecond)
	conn, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	conn = quickack.Conn(conn)
	r := qemufile.NewReader(conn)
	g := standby.New(standby.Config{})
	defer g.Close()
	if err := g.LoadInitial(r, func(vmstate.Command) error { return nil }); err != nil {
		b.Fatal(err)
	}
	answer(b, conn, 0)
	var times []taken
	for range benchCheckpoints {
		r.BE32() // checkpoint-request
		answer(b, conn, 2)
		r.BE32() // vmstate-send
		began := time.Now()
		r.Skip(5)
		for {
			word := r.BE64()
			if r.Err() != nil || word&0x10 != 0 {
				break // end of section
			}
			if word&0x20 == 0 {
				r.Skip(uint64(r.Byte()))
			}
			if word&0x08 != 0 {
				r.Skip(4096)
			} else {
				r.Skip(1) // zeros
			}
		}
		r.Skip(5 + 1 + 4)
		n := r.BE64()
		sized := time.Now()
		r.Skip(n)
		if err := r.Err(); err != nil {
			b.Fatal(err)
		}
		answer(b, conn, 5, 6)
		times = append(times, taken{time.Since(began), time.Since(sized)})
	}
	return median(times)
}

func answer(b *testing.B, conn net.Conn, m ...uint32) {
	if _, err := conn.Write(be(m...)); err != nil {
		b.Fatal(err)
	}
}
