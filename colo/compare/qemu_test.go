package compare_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/qemutest"
)

// A machine is a QEMU without a guest: two netdevs that are connected to each
// other, in the places of the network and of the guest's NIC, and filters at
// the first one. The test is at the other end of everything.
type machine struct {
	network, guest *filter.Conn // QEMU's socket netdevs frame as its filters do
	devs           map[string]*filter.Conn
}

// newMachine starts a QEMU with filters at netdev n0 and a character device for
// each name that they use.
func newMachine(t *testing.T, cfg filter.ConnConfig, devs []string, filters ...string) *machine {
	t.Helper()
	dir := qemutest.Dir(t)
	args := []string{"-M", "none", "-nodefaults", "-display", "none"}
	var listeners []net.Listener
	listen := func(network, addr string) string {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		listeners = append(listeners, l)
		return l.Addr().String()
	}
	for i := range 2 {
		args = append(args,
			"-netdev", fmt.Sprintf("socket,id=n%d,connect=%s", i, listen("tcp", "127.0.0.1:0")),
			"-netdev", fmt.Sprintf("hubport,id=h%d,hubid=0,netdev=n%d", i, i))
	}
	for _, d := range devs {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=%s,path=%s", d, listen("unix", filepath.Join(dir, d))))
	}
	for i, f := range filters {
		if cfg.VNetHdr {
			f += ",vnet_hdr_support=on"
		}
		args = append(args, "-object", fmt.Sprintf("%s,id=f%d,netdev=n0", f, i))
	}
	qemutest.Start(t, dir, args...)
	m := &machine{devs: make(map[string]*filter.Conn)}
	for i, l := range listeners {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		switch i {
		case 0:
			m.network = filter.NewConn(c, filter.ConnConfig{})
		case 1:
			m.guest = filter.NewConn(c, filter.ConnConfig{})
		default:
			m.devs[devs[i-2]] = filter.NewConn(c, cfg)
		}
	}
	return m
}

func expect(t *testing.T, r compare.PacketReader, want []byte, what string) {
	t.Helper()
	if got, err := r.ReadPacket(); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %x, %v, want %x", what, got, err, want)
	}
}

func TestFramesGoThroughQEMUsFiltersAndBack(t *testing.T) {
	for _, vnet := range []bool{false, true} {
		t.Run(fmt.Sprintf("vnet_hdr_support=%t", vnet), func(t *testing.T) {
			var wg sync.WaitGroup
			t.Cleanup(wg.Wait) // the last: when the connections are closed
			cfg := filter.ConnConfig{VNetHdr: vnet}
			m := newMachine(t, cfg, []string{"mirrored", "in", "out"},
				"filter-mirror,queue=tx,outdev=mirrored", "filter-redirector,queue=tx,indev=in", "filter-redirector,queue=rx,outdev=out")

			// Ours: what is for the guest goes to QEMU's redirector, and what
			// QEMU's redirector takes from the guest comes in here.
			arrived := make(chan []byte, 1000)
			out := filter.NewOutbox(0)
			chain := &filter.Chain{Deliver: func(d filter.Direction, f filter.Frame) error {
				if d == filter.FromGuest && f.VNetHdr == 0 {
					arrived <- bytes.Clone(f.Data)
				}
				return nil
			}}
			for _, e := range []filter.Entry{
				{ID: "in", Filter: filter.Redirector{}, Queue: filter.QueueRX},
				{ID: "out", Filter: filter.Redirector{Out: out}, Queue: filter.QueueTX},
			} {
				if err := chain.Insert(e, filter.Position{}); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithCancel(context.Background())
			wg.Go(func() { out.Run(ctx, m.devs["in"]) })
			served := make(chan error, 1)
			wg.Go(func() { served <- chain.Serve(ctx, "in", m.devs["out"]) })
			t.Cleanup(cancel)

			frame := func(i, n int) []byte { return append(bytes.Repeat([]byte{byte(i)}, n-1), 0xee) }
			for i, n := range []int{14, 60, 1514, 9000, 65536, filter.MaxFrame} {
				for range 20 {
					p := frame(i, n)
					if err := m.network.WritePacket(p); err != nil {
						t.Fatal(err)
					}
					expect(t, m.devs["mirrored"], p, "mirrored")
					if v := m.devs["mirrored"].VNetHdrLen(); v != 0 {
						t.Errorf("a virtio-net header of %d bytes", v)
					}
					expect(t, m.guest, p, "passed by the mirror")

					p = frame(i+100, n)
					if err := chain.Send(filter.ToGuest, filter.Frame{Data: p}); err != nil {
						t.Fatal(err)
					}
					expect(t, m.guest, p, "redirected to the guest")

					p = frame(i+200, n)
					if err := m.guest.WritePacket(p); err != nil {
						t.Fatal(err)
					}
					select {
					case got := <-arrived:
						if !bytes.Equal(got, p) {
							t.Fatalf("redirected from the guest: %x", got)
						}
					case err := <-served:
						t.Fatal(err)
					case <-time.After(time.Minute):
						t.Fatal("nothing came from the guest")
					}
				}
			}
		})
	}
}

// A tally counts what was taken from a connection that outlives its reader: a
// packet has been worked on when the next one is asked for.
type tally struct {
	packets chan []byte
	asked   chan struct{}
}

func (s tally) ReadPacket() ([]byte, error) {
	s.asked <- struct{}{}
	p, ok := <-s.packets
	if !ok {
		return nil, io.EOF
	}
	return p, nil
}

// put hands over a packet and waits until the reader is done with it.
func (s tally) put(p []byte) {
	s.packets <- p
	<-s.asked
}

// Two QEMUs have a primary's and a secondary's filters, and a Comparer is where
// their colo-compare would be. Guests say what the vectors have; what comes out
// at the primary's network is what QEMU's own comparison let out. The vectors
// with virtio-net headers are left out: a socket netdev has none.
func TestComparerStandsInForQEMUs(t *testing.T) {
	primary := newMachine(t, filter.ConnConfig{}, []string{"take", "give"},
		"filter-redirector,queue=rx,indev=give", "filter-redirector,queue=rx,outdev=take") // from the guest the last is the first
	secondary := newMachine(t, filter.ConnConfig{}, []string{"take"}, "filter-redirector,queue=rx,outdev=take")
	for _, strict := range []bool{true, false} {
		for _, v := range vectors(t) {
			if slices.ContainsFunc(v.Steps, func(s step) bool { return s.VNetHdr > 0 }) {
				continue
			}
			got := standIn(t, primary, secondary, &v, strict)
			if want := v.want(t, strict); !slices.Equal(got, want) {
				t.Errorf("%s, strict %t:\ngot  %q\nwant %q", v.Name, strict, got, want)
			}
		}
	}
}

func standIn(t *testing.T, primary, secondary *machine, v *vector, strict bool) (got []string) {
	t.Helper()
	var mu sync.Mutex
	wanted := false
	c := compare.NewComparer(compare.Config{Strict: strict, MaxQueue: v.Options.MaxQueue, Timeout: time.Hour})
	c.Diverged = func(compare.Reason) {
		mu.Lock()
		defer mu.Unlock()
		wanted = true
	}
	for _, begin := range []func(uint64) error{c.Mark, c.Received, c.Loaded} {
		if err := begin(0); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := tally{make(chan []byte), make(chan struct{}, 1)}
	s := tally{make(chan []byte), make(chan struct{}, 1)}
	var wg sync.WaitGroup
	wg.Go(func() { c.ServePrimary(ctx, p) })
	wg.Go(func() { c.ServeSecondary(ctx, s) })
	wg.Go(func() {
		if err := c.Run(ctx, primary.devs["give"]); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()
	defer close(p.packets)
	defer close(s.packets)
	<-p.asked
	<-s.asked

	// say sends a frame of a guest, by way of its QEMU.
	say := func(m *machine, side tally, frame []byte) {
		if err := m.guest.WritePacket(frame); err != nil {
			t.Fatal(err)
		}
		p, err := m.devs["take"].ReadPacket()
		if err != nil || !bytes.Equal(p, frame) {
			t.Fatalf("QEMU made %x of %x, %v", p, frame, err)
		}
		side.put(p)
	}
	// An ARP packet leaves at once, behind everything that leaves before it.
	last := []byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01last")
	sent := map[string]string{}
	epoch := uint64(1)
	for _, st := range v.Steps {
		frame, err := hex.DecodeString(st.Hex)
		if err != nil {
			t.Fatal(err)
		}
		switch st.Op {
		case "primary":
			sent[string(frame)] = st.ID
			say(primary, p, frame)
		case "secondary":
			say(secondary, s, frame)
		case "checkpoint":
			for _, do := range []func(uint64) error{c.Mark, c.Received, c.Loaded} {
				if err := do(epoch); err != nil {
					t.Fatal(err)
				}
			}
			epoch++
		}
		say(primary, p, last)
		var out []string
		for {
			f, err := primary.network.ReadPacket()
			if err != nil {
				t.Fatalf("%s: %v", v.Name, err)
			}
			if bytes.Equal(f, last) {
				break
			}
			out = append(out, sent[string(f)])
		}
		mu.Lock()
		got = append(got, outcome(out, wanted))
		wanted = false
		mu.Unlock()
	}
	return got
}
