package standby_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// downstream is a session of a guest's replica with a further secondary.
type downstream struct {
	*colo.Primary
	done    chan error
	commits chan event.CheckpointCommit
}

func (d *downstream) await(t *testing.T, n int) (last event.CheckpointCommit) {
	t.Helper()
	limit := time.After(60 * time.Second)
	for range n {
		select {
		case last = <-d.commits:
		case err := <-d.done:
			t.Fatalf("the session with the secondary has ended: %v", err)
		case <-limit:
			t.Fatal("no checkpoint of the secondary")
		}
	}
	return last
}

// rest stops the checkpoints, and returns the last one when it is over. A QEMU
// that was told to fail over while checkpoints came every 10 ms has been seen to answer
// nothing for a minute, once; between two checkpoints none has.
func (d *downstream) rest(t *testing.T) event.CheckpointCommit {
	t.Helper()
	d.SetCheckpointDelay(time.Hour)
	d.RequestCheckpoint(event.CauseRequest)
	for {
		if c := d.await(t, 1); c.Cause == event.CauseRequest {
			return c
		}
	}
}

// protect begins a session with a further secondary, at addr, that is sent the guest's state.
func protect(t *testing.T, g *standby.Copy, addr string, save ram.SaverConfig, cfg colo.PrimaryConfig) *downstream {
	t.Helper()
	network, address, _ := strings.Cut(addr, ":")
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	reg := new(vmstate.Registry)
	p, saver, err := g.NewReplica(reg, save)
	if err != nil {
		t.Fatal(err)
	}
	in, err := g.Info()
	if err != nil {
		t.Fatal(err)
	}
	d := &downstream{done: make(chan error, 1), commits: make(chan event.CheckpointCommit, 1000)}
	events := new(event.Bus)
	event.Subscribe(events, func(c event.CheckpointCommit) {
		select {
		case d.commits <- c:
		default: // so many that nobody has waited for; the session must not stand for it
		}
	})
	step := cfg.Step
	cfg.Step = func(op string, epoch uint64) {
		p.Step(op, epoch)
		if step != nil {
			step(op, epoch)
		}
	}
	cfg.VM, cfg.State, cfg.RAM, cfg.Events, cfg.Machine = p, reg, saver, events, in.Machine
	cfg.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error {
		return fmt.Errorf("%w: the guest is not run here", colo.ErrRefused)
	})
	if d.Primary, err = colo.NewPrimary(quickack.Conn(conn), cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err := d.Primary.Run(ctx)
		p.Close()
		d.done <- err
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return d
}

// secondary starts a QEMU that waits for a migration.
func secondary(t *testing.T, machine string, megabytes int) (v *qemutest.VM, uri string) {
	t.Helper()
	uri = "tcp:" + socket.FreeTCP(t, 1)[0]
	dir := qemutest.Dir(t)
	return qemutest.Start(t, dir, append(qemutest.GuestArgs(t, dir, machine, megabytes), "-incoming", uri)...), uri
}

// sameMemory compares a QEMU's memory with the guest's, but for what the guest
// itself writes, and lets the counter be ahead.
func sameMemory(t *testing.T, v *qemutest.VM, g *standby.Copy) {
	t.Helper()
	const dirty = 10 * ram.PageSize
	for _, part := range [][2]int{{0, 0xa0000}, {1<<20 + dirty, 15<<20 - dirty}} {
		want := make([]byte, part[1])
		if err := g.ReadRAM("pc.ram", uint64(part[0]), want); err != nil {
			t.Fatal(err)
		}
		if got := v.Memory(part[0], part[1]); !bytes.Equal(got, want) {
			t.Errorf("%d bytes at %#x differ", differences(got, want), part[0])
		}
	}
}

func TestAQEMUSecondaryGoesOnFromAGuestThatWasRecorded(t *testing.T) {
	qemutest.KVM(t)
	for i, machine := range machines {
		for j, c := range []struct {
			name string
			args []string
			cfg  ram.SaverConfig
		}{{"plain", nil, ram.SaverConfig{}}, {"xbzrle", nil, ram.SaverConfig{XBZRLE: 1 << 20}}} {
			t.Run(machine+" "+c.name, func(t *testing.T) {
				require.Sample(t, 2*i+j, 5)
				// A recorded stream of a guest that has counted.
				dir := qemutest.Dir(t)
				v := qemutest.Start(t, dir, qemutest.GuestArgs(t, dir, machine, 16)...)
				qemutest.AwaitSerial(t, dir, 20)
				file := dir + "/stream"
				v.Must("migrate", qemutest.Args{"uri": "exec:cat >" + file})
				for v.Must("query-migrate", nil)["status"] != "completed" {
					time.Sleep(5 * time.Millisecond)
				}
				v.Kill()
				f, err := os.Open(file)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				g := standby.New(standby.Config{})
				defer g.Close()
				if err := g.Read(qemufile.NewReader(f)); err != nil {
					t.Fatal(err)
				}

				s, uri := secondary(t, machine, 16)
				d := protect(t, g, uri, c.cfg, colo.PrimaryConfig{CheckpointDelay: 10 * time.Millisecond})
				d.await(t, qemutest.Rounds()+1)
				last := d.rest(t)
				if machine == "pc" {
					sameMemory(t, s, g)
				}
				s.Must("x-colo-lost-heartbeat", nil)
				if err := <-d.done; !errors.Is(err, colo.ErrRefused) {
					t.Errorf("the session ended with %v", err)
				}
				// It was put back to the same checkpoint again and again, and now
				// counts on.
				n := len(qemutest.Serial(s.Dir))
				list := qemutest.AwaitSerial(t, s.Dir, n+20)[n:]
				for i := range list[1:] {
					if list[i+1] != list[i]+qemutest.Every {
						t.Errorf("%#x follows %#x", list[i+1], list[i])
					}
				}
				seen := qemutest.Serial(dir)
				if list[0] < seen[len(seen)-1] {
					t.Errorf("it goes on at %#x, before %#x", list[0], seen[len(seen)-1])
				}
				t.Logf("checkpoint %d: %.2f ms, %d bytes", last.Epoch, float64(last.TransferNS+last.CommitNS)/1e6, last.Bytes)
			})
		}
	}
}

func TestCheckpointsArePassedOnToQEMUSecondaries(t *testing.T) {
	qemutest.KVM(t)
	for i, caps := range [][]string{nil, {"xbzrle"}} {
		t.Run(fmt.Sprint(caps), func(t *testing.T) {
			require.Sample(t, i, 2)
			l, p := primary(t, "pc", 16, 3, 20*time.Millisecond, caps...)
			x := accept(t, l, options{})
			x.await(2)
			// Two of them, one after the other, in the middle of it.
			s1, uri1 := secondary(t, "pc", 16)
			d1 := protect(t, x.guest, uri1, ram.SaverConfig{}, colo.PrimaryConfig{CheckpointDelay: 30 * time.Millisecond})
			s2, uri2 := secondary(t, "pc", 16)
			d2 := protect(t, x.guest, uri2, ram.SaverConfig{XBZRLE: 1 << 20}, colo.PrimaryConfig{CheckpointDelay: -1})
			d1.await(t, 20)
			d2.await(t, 20)
			p.Kill()
			if err := x.wait(); err != nil {
				t.Fatal(err)
			}
			// What was committed here reaches both.
			d1.RequestCheckpoint(event.CauseRequest)
			for len(d1.commits) > 0 {
				<-d1.commits
			}
			for len(d2.commits) > 0 {
				<-d2.commits
			}
			d1.await(t, 3)
			d2.await(t, 3)
			d1.rest(t)
			d2.rest(t)
			at := x.lastCount()
			for i, s := range []*qemutest.VM{s1, s2} {
				sameMemory(t, s, x.guest)
				s.Must("x-colo-lost-heartbeat", nil)
				n := len(qemutest.Serial(s.Dir))
				list := qemutest.AwaitSerial(t, s.Dir, n+20)[n:]
				if list[0] < at || list[19] != list[0]+19*qemutest.Every {
					t.Errorf("secondary %d counts from %#x to %#x; the checkpoint was %#x", i, list[0], list[19], at)
				}
			}
		})
	}
}
