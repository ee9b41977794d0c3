package linuxguest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/internal/require"
)

// The tests here need LOCKSTEP_LINUX_KIT, the directory of a Kit, which
// .ci/linux-hosts makes, and LOCKSTEP_REQUIRE may name linux-hosts.
const (
	kitVariable = "LOCKSTEP_LINUX_KIT"
	linuxHosts  = "linux-hosts"
)

// needKit returns the kit, or ends the test for want of it or of a program.
func needKit(t *testing.T, programs ...string) *Kit {
	t.Helper()
	dir := os.Getenv(kitVariable)
	if dir == "" {
		require.Missing(t, linuxHosts, errors.New(kitVariable+" names no directory; .ci/linux-hosts does all of it"))
	}
	for _, p := range programs {
		require.Program(t, linuxHosts, p)
	}
	k, err := OpenKit(dir)
	if err != nil {
		require.Missing(t, linuxHosts, err)
	}
	return k
}

// A world is one pair of machines, their networks and the client's end.
type world struct {
	t       *testing.T
	dir     string // for files
	sockets string // for sockets, whose names must be short
	tsc     uint64 // of this host, kHz
	kit     *Kit
	group   sync.WaitGroup
	ctx     context.Context
	cluster Hub
	guests  Hub
	inside  chan func() // runs in the client's network namespace

	machines    map[string]*Machine
	guestMemory uint64 // bytes of the guest's
	hung        string // evidence that a machine itself has stopped, or lost an interrupt
	stood       string // why the test failed, if all that went wrong is that something stood still or ended
}

// newWorld makes the networks, which end with the test.
func newWorld(t *testing.T, k *Kit) *world {
	ctx, cancel := context.WithCancel(context.Background())
	sockets, err := os.MkdirTemp("", "net")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: t.TempDir(), sockets: sockets, tsc: tscKHz(), kit: k, ctx: ctx, inside: make(chan func()), machines: make(map[string]*Machine), guestMemory: 128 << 20}
	t.Cleanup(func() {
		w.panicked()
		if t.Failed() {
			w.interrupts()
		}
		spoilt := w.spoilt()
		for _, m := range w.machines {
			m.Kill() // gone already: no matter
		}
		cancel()
		w.group.Wait()
		os.RemoveAll(sockets)
		if t.Failed() {
			w.consoles()
			switch {
			case spoilt != "":
				t.Logf("spoilt by the emulator: %s: %s", t.Name(), spoilt)
			case w.stood != "":
				t.Logf("in doubt: %s: %s", t.Name(), w.stood)
			}
		}
	})
	if keep := os.Getenv("LOCKSTEP_LINUX_KEEP"); keep != "" {
		w.dir = filepath.Join(keep, strings.ReplaceAll(t.Name(), "/", "-"))
		w.must(os.MkdirAll(w.dir, 0o777))
	}
	return w
}

// spoilt returns the evidence that the emulator has spoilt the run, "" if there is none;
// see Spoilt. .ci/linux-hosts repeats such a run, a few times in all.
func (w *world) spoilt() string {
	if w.hung != "" {
		return w.hung
	}
	for name, m := range w.machines {
		if evidence := m.FellDown(); evidence != "" {
			return "machine " + name + ": " + evidence
		}
		if evidence := Spoilt(m.Console(), m.Events(), w.guestMemory, m.Memory()); evidence != "" {
			return "machine " + name + ": " + evidence
		}
	}
	return ""
}

// panicked fails the test if a guest has printed a panic, whatever else has come of it.
func (w *world) panicked() {
	for name, m := range w.machines {
		if said := GuestPanic(m.Console(), m.Events()); said != "" {
			w.t.Errorf("the guest on machine %s: %s", name, said)
			w.stood = ""
		}
	}
}

// stands fails the test since a guest or a machine stands still, or has ended by itself.
// If nothing else has gone wrong, nothing was lost or contradicted, and the test is in
// doubt: the emulator may have done it without a trace. .ci/linux-hosts has it pass some
// more runs then.
func (w *world) stands(format string, args ...any) {
	w.t.Helper()
	why := fmt.Sprintf(format, args...)
	if !w.t.Failed() {
		w.stood = why
	}
	w.t.Fatal(why)
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// standAt matches the lines that tell most about where a CPU is, and what it waits for.
var standAt = regexp.MustCompile(`(?m)^(RIP=.*HLT=\d|(IRR|ISR)\s+\d.*)`)

// interrupts looks, after a failure, whether the emulator has lost an interrupt of a
// machine that still runs.
func (w *world) interrupts() {
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	for _, m := range w.machines {
		select {
		case <-m.Ended():
			continue
		default:
		}
		evidence, cpus := m.LostInterrupt(ctx)
		w.t.Logf("the CPUs of machine %s, after the failure:\n%s", m.Name(), cpus)
		w.t.Logf("the CPUs of machine %s stand at: %s", m.Name(), aLine(strings.Join(standAt.FindAllString(cpus, -1), "\n")))
		if evidence != "" && w.hung == "" {
			w.hung = evidence
		}
	}
}

// consoles prints what all machines have said, and their last words in a line of their
// own each, for where a log is cut.
func (w *world) consoles() {
	for name, m := range w.machines {
		w.t.Logf("console of machine %s:\n%s\nevents of machine %s:\n%s", name, tail(m.Console(), 150), name, tail(m.Events(), 40))
	}
	for name, m := range w.machines {
		w.t.Logf("last on the console of machine %s: %s", name, aLine(tail(m.Console(), 8)))
		w.t.Logf("last events of machine %s: %s", name, aLine(tail(m.Events(), 8)))
	}
}

// aLine puts lines into one.
func aLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\r' || r == '\n' }), " | ")
}

func tail(s string, lines int) string {
	all := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// port makes a socket of a hub for a machine's network card.
func (w *world) port(h *Hub, name string) string {
	path := filepath.Join(w.sockets, name)
	l, err := net.Listen("unix", path)
	w.must(err)
	w.group.Go(func() {
		stop := context.AfterFunc(w.ctx, func() { l.Close() })
		defer stop()
		conn, err := l.Accept()
		l.Close()
		if err == nil {
			h.Serve(w.ctx, name, filter.NewConn(conn, filter.ConnConfig{}), conn)
		}
	})
	return path
}

// client makes the third side of the guest's network: a TAP interface in a
// namespace of its own.
func (w *world) client() {
	ip := require.Program(w.t, linuxHosts, "ip")
	fail := make(chan error)
	w.group.Go(func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		fail <- err
		if err != nil {
			return
		}
		for {
			select {
			case fn := <-w.inside:
				fn()
			case <-w.ctx.Done():
				return
			}
		}
	})
	if err := <-fail; err != nil {
		require.Missing(w.t, linuxHosts, fmt.Errorf("network namespace: %w", err))
	}
	var missing error
	w.in(func() error {
		dev, err := tap.Open(tap.Config{Name: "guests"})
		if err != nil {
			missing = err
			return nil
		}
		w.group.Go(func() { w.guests.Serve(w.ctx, "client", dev, dev) })
		cmd := exec.Command(ip, "-batch", "-")
		cmd.Stdin = strings.NewReader("link set lo up\nlink set guests addrgenmode none\nlink set guests up\naddress add " + ClientIP + "/24 dev guests\n")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if missing != nil {
		require.Missing(w.t, linuxHosts, missing)
	}
}

// in calls fn in the client's namespace. Sockets that it makes belong there.
func (w *world) in(fn func() error) {
	w.t.Helper()
	done := make(chan error, 1)
	w.inside <- func() { done <- fn() }
	w.must(<-done)
}

// dial connects to a port of an address on the guest's network, of somebody who may have to come up
// first.
//
// The kernel does not ask after the guest by itself: it would end the connection to one
// that stands still before the test has looked at why it does.
func (w *world) dial(ctx context.Context, ip, port string) net.Conn {
	w.t.Helper()
	dialer := net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1}
	for {
		var conn net.Conn
		var err error
		w.in(func() error {
			conn, err = dialer.DialContext(ctx, "tcp4", net.JoinHostPort(ip, port))
			return nil
		})
		if err == nil {
			return conn
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			w.stands("%s does not answer: %v", ip, err)
		}
	}
}

// unlessEnded returns a context that ends also when a machine does, for want of
// which waits would take all their time.
func (w *world) unlessEnded(ctx context.Context, d time.Duration, machines ...*Machine) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithTimeout(ctx, d)
	ctx, cancel := context.WithCancelCause(ctx)
	for _, m := range machines {
		w.group.Go(func() {
			select {
			case <-m.Ended():
				cancel(fmt.Errorf("machine %s has ended", m.Name()))
			case <-ctx.Done():
			}
		})
	}
	return ctx, func() { cancel(nil); stop() }
}

// machine starts a machine with both network cards, in a role.
func (w *world) machine(number int, name, role, disk string, base []string, files map[string]string) *Machine {
	w.t.Helper()
	archive := filepath.Join(w.dir, name+".role")
	w.must(RoleArchive(archive, role, files))
	m, err := StartMachine(MachineConfig{
		Name: name, Dir: w.dir, Memory: 768, Emulator: w.kit.Emulator, Kernel: w.kit.Kernel, Initrd: append(base[:len(base):len(base)], archive),
		Disk: disk, TSC: w.tsc,
		Ports:   []string{w.port(&w.cluster, name+"-cluster"), w.port(&w.guests, name+"-guests")},
		MACs:    []string{fmt.Sprint(clusterMACs, number), fmt.Sprint(bridgeMACs, number)},
		Monitor: filepath.Join(w.sockets, name+"-monitor"),
		Pulse:   filepath.Join(w.sockets, name+"-pulse"),
	})
	w.must(err)
	w.machines[name] = m
	return m
}

// image makes an empty file system for the guest's disk, 0 for no file system.
func (w *world) image(name string, filesystem bool) string {
	path := filepath.Join(w.dir, name)
	f, err := os.Create(path)
	w.must(err)
	w.must(errors.Join(f.Truncate(16<<20), f.Close()))
	if filesystem {
		out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-F", path).CombinedOutput()
		if err != nil {
			w.t.Fatalf("mke2fs: %v: %s", err, out)
		}
	}
	return path
}

// log checks the file system in an image, read-only, and returns the guest's log.
func (w *world) log(image string) []byte {
	w.t.Helper()
	if out, err := exec.Command("e2fsck", "-f", "-n", image).CombinedOutput(); err != nil {
		w.t.Errorf("e2fsck: %v: %s", err, out)
	}
	var said bytes.Buffer
	cmd := exec.Command("debugfs", "-R", "cat /log", image)
	cmd.Stderr = &said
	log, err := cmd.Output()
	if err != nil {
		w.t.Errorf("debugfs: %v: %s", err, &said)
	}
	return log
}
