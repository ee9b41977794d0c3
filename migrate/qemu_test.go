package migrate

import (
	"bytes"
	"context"
	"flag"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// The machine "none" has memory and two devices, and no vCPU.
const noneMegabytes = 8

// opaque is a device of so many bytes.
type opaque struct{ p []byte }

func (o *opaque) VMState(f *vmstate.Fields) { f.Bytes("all", o.p) }

// noneGuest returns a guest like a QEMU's machine "none".
func noneGuest(t *testing.T) *guest {
	t.Helper()
	mem, err := mapping.New(noneMegabytes << 20)
	check(t, err)
	t.Cleanup(func() { mapping.Free(mem) })
	g := &guest{
		blocks: []ram.Block{{Name: "ram", Host: mem}},
		dirty:  map[string]ram.Bitmap{"ram": ram.NewBitmap(len(mem) / page)},
		r:      rand.New(rand.NewPCG(1, 9)),
	}
	return g
}

// devices registers the devices of that machine.
func (g *guest) devices(t *testing.T) {
	t.Helper()
	state := make([]byte, 104) // of globalstate
	copy(state, "\x00\x00\x00\x08running")
	check(t,
		g.state.Register(vmstate.Entry{Name: "timer", Version: 2, MinVersion: 2}, &opaque{make([]byte, 24)}),
		g.state.Register(vmstate.Entry{Name: "globalstate", Version: 1, MinVersion: 1}, &opaque{state}))
}

func capabilities(v *qemutest.VM, names ...string) {
	var list []qemutest.Args
	for _, n := range names {
		list = append(list, qemutest.Args{"capability": n, "state": true})
	}
	v.Must("migrate-set-capabilities", qemutest.Args{"capabilities": list})
}

// A QEMU 7.2 that takes up postcopy again does not always come to its end: it may send empty
// sections for ever, or call what it has sent whole before all of it has arrived.
var recoverQEMU = flag.Bool("recover-qemu", false, "also break the connection of a QEMU that sends its guest")

func TestAQEMUsMemoryFollowsItsGuest(t *testing.T) { takeFromQEMU(t, 0) }

func TestAQEMUTakesUpPostcopyAgain(t *testing.T) {
	if !*recoverQEMU {
		t.Skip("only with -recover-qemu")
	}
	takeFromQEMU(t, 2)
}

// filledQEMU returns the memory of a QEMU's guest, in which some pages are zeros, and the
// arguments with which a QEMU has it.
func filledQEMU(t *testing.T, dir string) (content []byte, args []string) {
	content = make([]byte, noneMegabytes<<20)
	r := rand.New(rand.NewPCG(5, 5))
	for i := range len(content) / page {
		if i%7 != 3 {
			content[i*page], content[i*page+page-1] = byte(r.Uint32()), byte(i)
		}
	}
	file := filepath.Join(dir, "content")
	check(t, os.WriteFile(file, content, 0o600))
	return content, append(qemutest.GuestArgs(t, dir, "none", noneMegabytes), "-device", "loader,force-raw=on,addr=0,file="+file)
}

// takeFromQEMU takes a guest over connections of which so many break in the middle of the
// memory that follows.
func takeFromQEMU(t *testing.T, breaks int) {
	dir := qemutest.Dir(t)
	content, args := filledQEMU(t, dir)

	g := noneGuest(t)
	var err error
	g.lazy, err = ram.NewLazy(g.blocks)
	check(t, err)
	require.Granted(t, require.Userfaultfd, g.lazy.Probe())
	check(t, g.lazy.Register(&g.state))
	g.devices(t)
	vcpu := &vcpu{g: g, want: func() [][]byte { return [][]byte{content} }}
	g.onRun = func() { vcpu.run(3) }

	q := qemutest.Start(t, dir, args...)
	capabilities(q, "postcopy-ram", "events")
	q.Must("migrate-set-parameters", qemutest.Args{"max-bandwidth": 256 << 10, "max-postcopy-bandwidth": (16 - 6*breaks) << 20})
	listener, uri := qemutest.Listen(t)
	q.Must("migrate", qemutest.Args{"uri": uri})
	conn, err := listener.Accept()
	check(t, err)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()

	left, recovered := breaks, 0
	d := NewDestination(DestinationConfig{
		VM: g, State: &g.state, Memory: g.lazy, Blocks: g.blocks, Machine: "none", Postcopy: true,
		Reconnect: func(ctx context.Context, _ error) (Conn, error) {
			for q.Must("query-migrate", nil)["status"] != "postcopy-paused" {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				time.Sleep(5 * time.Millisecond)
			}
			q.Must("migrate", qemutest.Args{"uri": uri, "resume": true})
			c, err := listener.Accept()
			if err != nil {
				return nil, err
			}
			recovered++
			if left--; left > 0 {
				return &ends{Conn: c, left: 256 << 10}, nil
			}
			return c, nil
		},
	})
	q.Must("migrate-start-postcopy", nil)
	var first Conn = conn
	if breaks > 0 {
		first = &ends{Conn: conn, left: 1 << 20, after: func() bool { return d.in.Postcopy() >= vmstate.PostcopyRunning }}
	}
	check(t, d.Run(ctx, first))
	vcpu.done.Wait()
	check(t, vcpu.wrong, g.lazy.Close())
	for p, v := range vcpu.written {
		content[p[1]*page] = v
	}
	if !bytes.Equal(g.blocks[0].Host, content) {
		t.Error("memory is not QEMU's")
	}
	if d.Stats.Recovered != breaks || recovered != breaks || d.Stats.Placed == 0 {
		t.Errorf("%+v", d.Stats)
	}
	for q.Must("query-migrate", nil)["status"] != "completed" {
		if ctx.Err() != nil {
			t.Fatal("QEMU does not say that it has sent the guest")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A QEMU that does not hear how the migration has ended does what the package comment says.
func TestAQEMUThatHearsNothingRunsItsGuestIfItWaitedForAWord(t *testing.T) {
	for _, x := range []struct {
		name         string
		capabilities []string
		state        string // of the QEMU, when the guest runs here
	}{
		{"return-path", []string{"return-path"}, "running"},
		{"none", nil, "postmigrate"},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := qemutest.Dir(t)
			content, args := filledQEMU(t, dir)
			g := noneGuest(t)
			var err error
			g.lazy, err = ram.NewLazy(g.blocks)
			check(t, err, g.lazy.Register(&g.state))
			g.devices(t)
			q := qemutest.Start(t, dir, args...)
			capabilities(q, append(x.capabilities, "events")...)
			q.Must("migrate-set-parameters", qemutest.Args{"max-bandwidth": 1 << 30})
			listener, uri := qemutest.Listen(t)
			q.Must("migrate", qemutest.Args{"uri": uri})
			conn, err := listener.Accept()
			check(t, err)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			d := NewDestination(DestinationConfig{VM: g, State: &g.state, Memory: g.lazy, Blocks: g.blocks, Machine: "none"})
			check(t, d.Run(ctx, &mute{Conn: conn, said: 8}), g.lazy.Close()) // the answer to a PING, if there is one
			if running, _ := g.runs(); !running || !bytes.Equal(g.blocks[0].Host, content) {
				t.Errorf("the guest runs here: %v", running)
			}
			for {
				status := q.Must("query-migrate", nil)["status"]
				if status == "completed" || status == "failed" {
					break
				}
				if ctx.Err() != nil {
					t.Fatal(status)
				}
				time.Sleep(5 * time.Millisecond)
			}
			q.AwaitRunState(x.state)
		})
	}
}

// mute is a connection that breaks when more than so many bytes are written.
type mute struct {
	net.Conn
	said int
}

func (m *mute) Write(p []byte) (int, error) {
	if m.said -= len(p); m.said < 0 {
		m.Conn.Close()
		return 0, net.ErrClosed
	}
	return m.Conn.Write(p)
}

// ends is a connection that breaks after so many bytes, once after says so.
type ends struct {
	net.Conn
	left  int
	after func() bool // nil: at once
}

func (e *ends) Read(p []byte) (int, error) {
	if e.after == nil || e.after() {
		if e.left <= 0 {
			e.Conn.Close()
			return 0, net.ErrClosed
		}
		p = p[:min(len(p), e.left)]
	}
	n, err := e.Conn.Read(p)
	if e.after == nil || e.after() {
		e.left -= n
	}
	return n, err
}

// incoming starts a QEMU that waits for a guest, when set has prepared it, and returns where.
func incoming(t *testing.T, set func(*qemutest.VM)) (q *qemutest.VM, address string) {
	t.Helper()
	dir := qemutest.Dir(t)
	q = qemutest.Start(t, dir, append(qemutest.GuestArgs(t, dir, "none", noneMegabytes), "-incoming", "defer")...)
	set(q)
	address = socket.FreeTCP(t, 1)[0]
	q.Must("migrate-incoming", qemutest.Args{"uri": "tcp:" + address})
	return q, address
}

// busyGuest returns a noneGuest that runs, and writes so often, with two thirds of its memory filled.
func busyGuest(t *testing.T, write int) *guest {
	t.Helper()
	g := noneGuest(t)
	for i := range len(g.blocks[0].Host) / page {
		if i%3 != 0 {
			g.fill(g.blocks[0].Host[i*page : (i+1)*page])
		}
	}
	g.running, g.write = true, write
	g.saver = ram.NewLazySaver(g.blocks, g, ram.SaverConfig{})
	check(t, g.saver.Register(&g.state))
	g.devices(t)
	return g
}

func TestAQEMUTakesAGuestWhoseMemoryFollows(t *testing.T) {
	g := busyGuest(t, 500)
	as, err := ram.NewLazy(g.blocks)
	check(t, err)
	require.Granted(t, require.Userfaultfd, as.Probe()) // which the QEMU has to have
	q, address := incoming(t, func(q *qemutest.VM) { capabilities(q, "postcopy-ram", "events") })

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var mu sync.Mutex
	again := 0
	s := NewSource(SourceConfig{
		VM: g, State: &g.state, Memory: g.saver, Blocks: g.blocks, Machine: "none",
		Postcopy: true, MaxDowntime: 1,
		Reconnect: func(ctx context.Context, _ error) (Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			again++
			for q.Must("query-migrate", nil)["status"] != "postcopy-paused" {
				if ctx.Err() != nil {
					return nil, ctx.Err()
				}
				time.Sleep(5 * time.Millisecond)
			}
			addr := socket.FreeTCP(t, 1)[0]
			q.Must("migrate-recover", qemutest.Args{"uri": "tcp:" + addr})
			return net.Dial("tcp", addr)
		},
	})
	conn, err := net.Dial("tcp", address)
	check(t, err)
	check(t, s.Run(ctx, &stops{Conn: conn, s: s, left: 600 << 10}))
	if running, _ := g.runs(); running {
		t.Error("the source's guest runs")
	}
	if !bytes.Equal(q.Memory(0, noneMegabytes<<20), g.blocks[0].Host) {
		t.Error("QEMU's memory is not the guest's")
	}
	if !s.Stats.Postcopy || s.Stats.Recovered != 1 || again != 1 {
		t.Errorf("%+v", s.Stats)
	}
}

// stops is a connection that breaks after so many bytes from the package on, when the
// other side has said that it has that.
type stops struct {
	net.Conn
	s    *Source
	left int
}

func (c *stops) Write(p []byte) (int, error) {
	if c.s.Stats.Postcopy {
		if c.left -= len(p); c.left < 0 {
			for end := time.Now().Add(time.Minute); !c.s.taken.Load() && time.Now().Before(end); {
				time.Sleep(time.Millisecond)
			}
			c.Conn.Close()
			return 0, net.ErrClosed
		}
	}
	return c.Conn.Write(p)
}
