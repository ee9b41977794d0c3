package standby_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/migrate"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// counted records a guest of QEMU that has counted, and returns the last number that it
// printed.
func counted(t testing.TB, machine string, megabytes int) (g *standby.Copy, last uint32) {
	t.Helper()
	dir := qemutest.Dir(t)
	v := qemutest.Start(t, dir, qemutest.GuestArgs(t, dir, machine, megabytes)...)
	qemutest.AwaitSerial(t, dir, 20)
	file := dir + "/stream"
	v.Must("migrate", qemutest.Args{"uri": "exec:cat >" + file})
	for end := time.Now().Add(time.Minute); v.Must("query-migrate", nil)["status"] != "completed"; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("QEMU does not end its stream")
		}
	}
	v.Kill()
	list := qemutest.Serial(dir)
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g = standby.New(standby.Config{})
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := g.Read(qemufile.NewReader(f)); err != nil {
		t.Fatal(err)
	}
	return g, list[len(list)-1]
}

// waiting starts a QEMU that waits for a guest, and returns a connection to it.
func waiting(t testing.TB, machine string, megabytes int, capabilities ...string) (*qemutest.VM, net.Conn) {
	t.Helper()
	address := socket.FreeTCP(t, 1)[0]
	dir := qemutest.Dir(t)
	v := qemutest.Start(t, dir, append(qemutest.GuestArgs(t, dir, machine, megabytes), "-incoming", "defer")...)
	var list []qemutest.Args
	for _, c := range capabilities {
		list = append(list, qemutest.Args{"capability": c, "state": true})
	}
	if len(list) > 0 {
		v.Must("migrate-set-capabilities", qemutest.Args{"capabilities": list})
	}
	v.Must("migrate-incoming", qemutest.Args{"uri": "tcp:" + address})
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	return v, conn
}

// goBefore has a guest go on in a QEMU before its memory is there.
func goBefore(ctx context.Context, g *standby.Copy, conn net.Conn) (migrate.SourceStats, error) {
	in, err := g.Info()
	if err != nil {
		return migrate.SourceStats{}, err
	}
	var reg vmstate.Registry
	p, memory, blocks, err := g.NewLazyReplica(&reg, ram.SaverConfig{})
	if err != nil {
		return migrate.SourceStats{}, err
	}
	s := migrate.NewSource(migrate.SourceConfig{VM: p, State: &reg, Memory: memory, Blocks: blocks, Machine: in.Machine, Postcopy: true, PostcopyAfter: -1})
	err = s.Run(ctx, conn)
	return s.Stats, errors.Join(err, p.Close())
}

// A standby's guest runs in a stock QEMU that has none of its memory yet, which follows:
// it counts on, and in the end all of the memory is there.
func TestAGuestGoesOnInAQEMUBeforeItsMemory(t *testing.T) {
	qemutest.KVM(t)
	for i, machine := range []string{"pc", "microvm"} {
		t.Run(machine, func(t *testing.T) {
			require.Sample(t, i, 2)
			g, last := counted(t, machine, 16)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			v, conn := waiting(t, machine, 16, "postcopy-ram")
			st, err := goBefore(ctx, g, conn)
			if err != nil {
				t.Fatal(err)
			}
			in, err := g.Info()
			if err != nil {
				t.Fatal(err)
			}
			if !st.Postcopy || st.Passes != 0 || st.Memory.Pages < in.RAM/ram.PageSize {
				t.Errorf("%+v, of %d pages", st, in.RAM/ram.PageSize)
			}
			list := qemutest.AwaitSerial(t, v.Dir, 20)
			// The guest may have printed one more than its file had when it was killed.
			if list[0] < last || list[0] > last+3*qemutest.Every {
				t.Errorf("it goes on at %#x, behind %#x", list[0], last)
			}
			for i := range list[1:] {
				if list[i+1] != list[i]+qemutest.Every {
					t.Fatalf("%#x follows %#x", list[i+1], list[i])
				}
			}
			if machine == "pc" {
				sameMemory(t, v, g)
			}
			if s := v.RunState(); s != "running" {
				t.Errorf("the guest is %s", s)
			}
		})
	}
}

// BenchmarkFirstOutput is the time from a standby's decision to the first number that its
// guest prints in a QEMU that waits, by postcopy, and beside it with the whole stream
// loaded first, for guests most of whose memory is zeros. It needs KVM.
func BenchmarkFirstOutput(b *testing.B) {
	for _, megabytes := range []int{256, 4 << 10, 16 << 10} {
		b.Run(fmt.Sprintf("MiB=%d", megabytes), func(b *testing.B) {
			qemutest.KVM(b)
			g, _ := counted(b, "pc", megabytes)
			first := func(v *qemutest.VM, begun time.Time) time.Duration {
				for len(qemutest.Serial(v.Dir)) == 0 {
					if time.Since(begun) > 5*time.Minute {
						b.Fatal("the guest prints nothing")
					}
					time.Sleep(time.Millisecond)
				}
				return time.Since(begun)
			}
			var lazy, whole, all []time.Duration
			for b.Loop() {
				v, conn := waiting(b, "pc", megabytes, "postcopy-ram")
				begun, done := time.Now(), make(chan error, 1)
				go func() {
					_, err := goBefore(context.Background(), g, conn)
					done <- err
				}()
				lazy = append(lazy, first(v, begun))
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				all = append(all, time.Since(begun))
				v.Kill()

				v, conn = waiting(b, "pc", megabytes)
				begun = time.Now()
				if err := errors.Join(g.Put(qemufile.NewWriter(conn)), conn.Close()); err != nil {
					b.Fatal(err)
				}
				whole = append(whole, first(v, begun))
				v.Kill()
			}
			for unit, list := range map[string][]time.Duration{"ms-postcopy": lazy, "ms-whole-stream": whole, "ms-all-of-postcopy": all} {
				slices.Sort(list)
				b.ReportMetric(ms(list[len(list)/2]), unit)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
