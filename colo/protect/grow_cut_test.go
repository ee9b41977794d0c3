package protect

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// An interrupter does something once, at one step of a growth.
type interrupter struct {
	at  string
	do  func()
	off atomic.Bool // it has, or nothing is to be interrupted yet
}

func (i *interrupter) comes(to string) {
	if to == i.at && !i.off.Swap(true) {
		i.do()
	}
}

// An interruptible is a connection of a primary, of which each operation may be the step.
type interruptible struct {
	net.Conn
	i     *interrupter
	n     int64
	count [2]atomic.Int64
}

func (c *interruptible) step(op int) {
	c.i.comes(fmt.Sprintf("connection %d, %s %d", c.n, [...]string{"read", "write"}[op], c.count[op].Add(1)-1))
}

func (c *interruptible) Read(p []byte) (int, error) {
	c.step(0)
	return c.Conn.Read(p)
}

func (c *interruptible) Write(p []byte) (int, error) {
	c.step(1)
	return c.Conn.Write(p)
}

// At each step of a growth a host dies, or the link is lost: the guest goes on with a disk that is as long as
// it was told, the verb can be called again, and both hosts have disks of one length then.
func TestAGrowthIsInterruptedAtEachOfItsSteps(t *testing.T) {
	steps := []string{"b begins", "b is longer", "a begins", "a is longer"}
	for n := range int64(2) { // the connections to the longer copy: the hello, the negotiation, the first requests
		for i := range int64(require.Many(2, 5, 8)) {
			steps = append(steps, fmt.Sprintf("connection %d, read %d", n, i), fmt.Sprintf("connection %d, write %d", n, i))
		}
	}
	apart := require.Many(4, 1, 1) // with -short one of the four happens at each step, and each at some
	for s, at := range steps {
		for k, what := range []string{"the link breaks", "the link is silent", "a dies", "b dies"} {
			if (s+k)%apart != 0 {
				continue
			}
			withGrowing(t, at+", "+what, func(t *testing.T, w *world) { interruptGrowth(w, at, what) })
		}
	}
}

func interruptGrowth(w *world, at, what string) {
	t := w.t
	var a, b *host
	i := &interrupter{at: at, do: func() {
		switch what {
		case "a dies":
			a.kill(true)
		case "b dies":
			b.kill(true)
		default:
			w.f.part("a", "b", what == "the link is silent")
		}
	}}
	i.off.Store(true)
	w.grows = func(h *host, size int64) error {
		i.comes(h.name + " begins")
		if !h.gone.Load() {
			h.image.lengthen(size)
			i.comes(h.name + " is longer")
		}
		return nil
	}
	var counts atomic.Bool
	var made atomic.Int64
	b = w.boot("b", false, nil)
	a = w.boot("a", true, func(c *Config) {
		dialBy(c, func(conn net.Conn) net.Conn {
			if !counts.Load() {
				return conn
			}
			return &interruptible{Conn: conn, i: i, n: made.Add(1) - 1}
		})
	})
	a.is(Protected)
	b.is(Following)
	counts.Store(true)
	i.off.Store(false)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	err := a.job.Grow(ctx, "root", grownSize)
	cancel()
	counts.Store(false)
	if happened := i.off.Swap(true); !happened && !strings.HasPrefix(at, "connection") {
		t.Error("it does not come to that")
	}
	if err == nil && a.disk.Size() != grownSize {
		t.Errorf("the verb has succeeded, and the disk has %d bytes", a.disk.Size())
	}
	time.Sleep(3 * time.Second)
	w.f.join("a", "b")
	for _, h := range []**host{&a, &b} {
		if (*h).gone.Load() {
			(*h).bury()
			*h = w.boot((*h).name, false, nil)
		}
	}
	// Whoever has the guest is asked again, until both have grown.
	told := max(a.toldSize.Load(), b.toldSize.Load())
	for begun := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("a is %v, b is %v; the last errors: %v; %v", a.job.State(), b.job.State(), a.job.Query().LastError, b.job.Query().LastError)
		}
		runs, other := a, b
		if !runs.job.State().runs() {
			runs, other = b, a
		}
		if !runs.job.State().runs() {
			continue
		}
		if size := runs.disk.Size(); size < told {
			t.Fatalf("the guest was told of %d bytes, and has %d on %s", told, size, runs.name)
		}
		if runs.job.State() == Protected && runs.job.Grow(t.Context(), "root", grownSize) == nil && runs.job.State() == Protected {
			a, b = runs, other
			break
		}
	}
	b.is(Following)
	sizes(t, grownSize, a, b)
	if _, err := a.disk.WriteAt(sector, grownSize-sectorSize); err != nil {
		t.Error(err)
	}
	w.hearsMore()
	time.Sleep(300 * time.Millisecond)
	a.kill(true)
	b.is(Alone)
	a.bury()
	b.hasAt(sector, grownSize-sectorSize)
	sizes(t, grownSize, b)
	b.halt()
}
