package standby_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/quickack"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// session is a standby of a QEMU, with its session running.
type session struct {
	t     testing.TB
	guest *standby.Copy
	s     *colo.Secondary
	done  chan error
	once  sync.Once
	err   error

	mu      sync.Mutex
	commits []event.CheckpointCommit
	reached chan struct{} // a checkpoint was committed; capacity one
}

type options struct {
	cfg   colo.SecondaryConfig
	nagle bool // leave acknowledgements to the kernel
	wrap  func(net.Conn) net.Conn
}

// primary starts a QEMU with a guest that counts. Once the guest has said n numbers, the QEMU is
// told to protect it, and connects to l.
func primary(t testing.TB, machine string, megabytes, n int, delay time.Duration, caps ...string) (l net.Listener, v *qemutest.VM) {
	t.Helper()
	l, uri := qemutest.Listen(t)
	dir := qemutest.Dir(t)
	v = qemutest.Start(t, dir, qemutest.GuestArgs(t, dir, machine, megabytes)...)
	qemutest.AwaitSerial(t, dir, n)
	v.Protect(uri, delay, caps...)
	return l, v
}

// accept takes one primary.
func accept(t testing.TB, l net.Listener, o options) *session {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return follow(t, conn, o)
}

// follow runs a session over the connection to a primary.
func follow(t testing.TB, conn net.Conn, o options) *session {
	t.Helper()
	x := &session{t: t, guest: standby.New(standby.Config{}), done: make(chan error, 1), reached: make(chan struct{}, 1)}
	if !o.nagle {
		conn = quickack.Conn(conn)
	}
	if o.wrap != nil {
		conn = o.wrap(conn)
	}
	o.cfg.VM, o.cfg.Loader, o.cfg.RAM = x.guest, x.guest, x.guest
	if o.cfg.Events == nil {
		o.cfg.Events = new(event.Bus)
	}
	if o.cfg.Arbiter == nil {
		o.cfg.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error { return nil })
	}
	event.Subscribe(o.cfg.Events, func(c event.CheckpointCommit) {
		x.mu.Lock()
		x.commits = append(x.commits, c)
		x.mu.Unlock()
		select {
		case x.reached <- struct{}{}:
		default:
		}
	})
	var err error
	if x.s, err = colo.NewSecondary(conn, o.cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	go func() { x.done <- x.s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		x.wait()
		if err := x.guest.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// await returns the commits once there are n checkpoints after the initial one.
func (x *session) await(n int) []event.CheckpointCommit {
	x.t.Helper()
	limit := time.After(60 * time.Second)
	for {
		x.mu.Lock()
		list := slices.Clone(x.commits)
		x.mu.Unlock()
		if len(list) > n {
			return list
		}
		select {
		case <-x.reached:
		case err := <-x.done:
			x.once.Do(func() { x.err = err })
			x.t.Fatalf("the session ended after %d checkpoints: %v", len(list)-1, err)
		case <-limit:
			x.t.Fatalf("%d checkpoints and no more", len(list)-1)
		}
	}
}

// wait returns how the session ended.
func (x *session) wait() error {
	x.once.Do(func() { x.err = <-x.done })
	return x.err
}

// stream writes the checkpoint to a file.
func (x *session) stream() string {
	x.t.Helper()
	name := filepath.Join(x.t.TempDir(), "state")
	f, err := os.Create(name)
	if err != nil {
		x.t.Fatal(err)
	}
	if err := errors.Join(x.guest.Put(qemufile.NewWriter(f)), f.Close()); err != nil {
		x.t.Fatal(err)
	}
	return name
}

// lastCount returns the counter in the guest's memory, at 1 MiB.
func (x *session) lastCount() uint32 {
	x.t.Helper()
	var p [4]byte
	if err := x.guest.ReadRAM(mainBlock(x.t, x.guest), 1<<20, p[:]); err != nil {
		x.t.Fatal(err)
	}
	return uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16 | uint32(p[3])<<24
}

// mainBlock returns the name of the largest block.
func mainBlock(t testing.TB, g *standby.Copy) string {
	t.Helper()
	in, err := g.Info()
	if err != nil {
		t.Fatal(err)
	}
	return slices.MaxFunc(in.Blocks, func(a, b ram.BlockInfo) int { return int(a.Length) - int(b.Length) }).Name
}

// goesOn checks that a guest that was brought back in dir counts on from where
// it was: the first number that it prints is the next one, or the one after if
// it was just printing.
func goesOn(t *testing.T, dir string, from uint32) {
	t.Helper()
	list := qemutest.AwaitSerial(t, dir, 20)
	next := from&^(qemutest.Every-1) + qemutest.Every
	if from%qemutest.Every == 0 {
		next = from // it was about to print this one, or in the middle of it
	}
	if list[0] != next && list[0] != next+qemutest.Every {
		t.Errorf("the guest was at %#x and its first number is %#x", from, list[0])
	}
	for i := range list[1:] {
		if list[i+1] != list[i]+qemutest.Every {
			t.Fatalf("number %d is %#x after %#x", i+1, list[i+1], list[i])
		}
	}
}

var machines = []string{"pc", "q35", "microvm"}

func TestAKilledPrimaryIsBroughtBackFromItsLastCheckpoint(t *testing.T) {
	qemutest.KVM(t)
	for i, machine := range machines {
		for j, caps := range [][]string{nil, {"xbzrle"}} {
			t.Run(fmt.Sprint(machine, caps), func(t *testing.T) {
				require.Sample(t, 2*i+j, 5)
				l, p := primary(t, machine, 16, 3, 20*time.Millisecond, caps...)
				x := accept(t, l, options{})
				x.await(qemutest.Rounds())
				p.Kill()
				if err := x.wait(); err != nil {
					t.Fatal(err)
				}
				at := x.lastCount()

				back := qemutest.Dir(t)
				q := qemutest.Start(t, back, append(qemutest.GuestArgs(t, back, machine, 16), "-incoming", "exec:cat "+x.stream())...)
				goesOn(t, back, at)
				if s := q.RunState(); s != "running" {
					t.Errorf("the guest is %s", s)
				}
				in, _ := x.guest.Info()
				t.Logf("%s: epoch %d, %d MB, %d devices of %d bytes, %d KB staged, %s, counter %#x",
					in.Machine, in.Epoch, in.RAM>>20, len(in.Devices), in.State, in.Staging>>10, in.RunState, at)
			})
		}
	}
}

func TestMemoryIsThePrimarysAtTheCheckpoint(t *testing.T) {
	qemutest.KVM(t)
	for i, caps := range [][]string{{"xbzrle"}, nil} {
		t.Run(fmt.Sprint(caps), func(t *testing.T) {
			require.Sample(t, i, 2)
			l, p := primary(t, "pc", 16, 3, 10*time.Millisecond, caps...)
			// The primary's guest stands still until vmstate-loaded.
			held, release := make(chan struct{}), make(chan struct{})
			var o options
			o.cfg.Step = func(op string, epoch uint64) {
				if op == "send vmstate-loaded" && epoch == 5 {
					close(held)
					<-release
				}
			}
			x := accept(t, l, o)
			<-held
			for _, part := range [][2]int{{0, 0xa0000}, {1 << 20, 15 << 20}} {
				got := make([]byte, part[1])
				if err := x.guest.ReadRAM("pc.ram", uint64(part[0]), got); err != nil {
					t.Fatal(err)
				}
				if want := p.Memory(part[0], part[1]); !bytes.Equal(got, want) {
					t.Errorf("%d bytes at %#x differ", differences(got, want), part[0])
				}
			}
			close(release)
			x.await(8)
			p.Kill()
			if err := x.wait(); err != nil {
				t.Fatal(err)
			}

			// And QEMU, told to wait, has it after loading the file.
			back := qemutest.Dir(t)
			q := qemutest.Start(t, back, append(qemutest.GuestArgs(t, back, "pc", 16), "-S", "-incoming", "exec:cat "+x.stream())...)
			for end := time.Now().Add(time.Minute); q.RunState() == "inmigrate" && time.Now().Before(end); {
				time.Sleep(10 * time.Millisecond)
			}
			for _, part := range [][2]int{{0, 0xa0000}, {1 << 20, 15 << 20}} {
				want := make([]byte, part[1])
				if err := x.guest.ReadRAM("pc.ram", uint64(part[0]), want); err != nil {
					t.Fatal(err)
				}
				if got := q.Memory(part[0], part[1]); !bytes.Equal(got, want) {
					t.Errorf("after loading, %d bytes at %#x differ", differences(got, want), part[0])
				}
			}
		})
	}
}

func differences(a, b []byte) (n int) {
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func TestAPrimaryThatStandsStillIsATimeout(t *testing.T) {
	t.Parallel()
	qemutest.KVM(t)
	for _, when := range []string{"wait", "expect vmstate-send"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			l, p := primary(t, "pc", 16, 1, 10*time.Millisecond)
			var o options
			o.cfg.PeerTimeout, o.cfg.IdleTimeout = 10*time.Second, 10*time.Second
			o.cfg.Arbiter = colo.ArbiterFunc(func(context.Context, colo.Claim) error {
				return fmt.Errorf("%w: nobody has seen it dead", colo.ErrRefused)
			})
			o.cfg.Step = func(op string, epoch uint64) {
				if op == when && epoch == 3 {
					p.Freeze()
				}
			}
			x := accept(t, l, o)
			err := x.wait()
			if !errors.Is(err, colo.ErrTimeout) || !errors.Is(err, colo.ErrRefused) {
				t.Errorf("the session ended with %v", err)
			}
			in, err := x.guest.Info()
			if err != nil || in.Epoch < 2 {
				t.Errorf("%+v, %v", in, err)
			}
		})
	}
}

// recorder keeps what a primary sends.
type recorder struct {
	net.Conn
	got []byte
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.got = append(r.got, p[:n]...)
	return n, err
}

func TestAPrimaryThatBreaksOffAnywhereLeavesTheCheckpointBefore(t *testing.T) {
	qemutest.KVM(t)
	for i, caps := range [][]string{{"xbzrle"}, nil} {
		t.Run(fmt.Sprint(caps), func(t *testing.T) {
			require.Sample(t, i, 2)
			l, p := primary(t, "microvm", 2, 1, 10*time.Millisecond, caps...)
			var rec *recorder
			x := accept(t, l, options{wrap: func(c net.Conn) net.Conn { rec = &recorder{Conn: c}; return rec }})
			x.await(6)
			p.Kill()
			x.wait()
			breakOff(t, rec.got)
		})
	}
}
