package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	flatguest "github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A flatWorld is a guest on KVM, the flat test program, which moves from process to process.
type flatWorld struct {
	t      *testing.T
	params flatguest.Params
	broken func(net.Conn) net.Conn // the first connection
	gone   bool                    // there is no other connection
	memory func(*os.File) io.ReaderAt
	later  func() // called when a guest's memory is to come later

	mu     sync.Mutex
	empty  []byte            // memory of the last machine whose guest came from elsewhere
	frames []flatguest.Frame // as they were emitted, wherever that was
	where  []int             // of each frame: the number of the machine
	said   []*bytes.Buffer
}

// flatMachine is gokvm's machine with the program's port.
type flatMachine struct {
	*gokvmMachine
	w      *flatWorld
	number int
	ensure func(block string, offset, n uint64) error // nil: all memory is there
}

// EnsureMemory is for the port as well, which looks at the guest's memory.
func (m *flatMachine) EnsureMemory(ensure func(block string, offset, n uint64) error) {
	m.ensure = ensure
	if m.w.later != nil {
		m.w.later()
	}
	m.gokvmMachine.EnsureMemory(ensure)
}

// DirtyLog returns a log that has all of the memory dirty at each look: the guest could never
// be moved with its memory while it runs.
func (m *flatMachine) DirtyLog() ram.DirtyLog { return rewritten{m.VM(), len(m.Blocks()[0].Host)} }

type rewritten struct {
	*kvm.VM
	n int
}

func (r rewritten) ReadDirty(block string, bitmap []uint64) error {
	ram.Bitmap(bitmap).SetRange(0, r.n/kvm.PageSize)
	return r.VM.ReadDirty(block, bitmap)
}

// IOPort implements iodev.Device, as Size, Read and Write do.
func (m *flatMachine) IOPort() uint64 { return flatguest.PortStatus }
func (m *flatMachine) Size() uint64   { return 8 }

func (m *flatMachine) Read(_ uint64, p []byte) error {
	p[0] = flatguest.StatusReady
	return nil
}

func (m *flatMachine) Write(port uint64, p []byte) error {
	if port != flatguest.PortEmit || len(p) != 4 {
		return fmt.Errorf("port %#x written with %d bytes", port, len(p))
	}
	addr := uint64(binary.LittleEndian.Uint32(p))
	if m.ensure != nil {
		if err := m.ensure(kvm.RAMBlock, addr, kvm.PageSize); err != nil {
			return err
		}
	}
	b, err := flatguest.Emitted(m.Blocks()[0].Host, addr)
	if err != nil {
		return err
	}
	f, err := flatguest.ParseFrame(b)
	if err != nil {
		return err
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.w.frames, m.w.where = append(m.w.frames, f), append(m.w.where, m.number)
	return nil
}

// machine makes a machine, with the program unless that is to come.
func (w *flatWorld) machine(number int, o options, devices gokvmhost.Config) (_ machine, err error) {
	if o.kernel == "" {
		f := &flatMachine{w: w, number: number}
		devices.OtherPorts = func(port uint16, in bool, p []byte) (known bool, err error) {
			switch at := uint64(port); {
			case at < f.IOPort() || at >= f.IOPort()+f.Size():
				return false, nil
			case in:
				return true, f.Read(at, p)
			default:
				return true, f.Write(at, p)
			}
		}
		if f.gokvmMachine, err = emptyMachine(o, devices); err != nil {
			return nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.empty = f.Blocks()[0].Host
		return f, nil
	}
	m, err := gokvmhost.New(gokvmhost.MachineConfig{VCPUs: o.vcpus, Memory: o.mem})
	if err != nil {
		return nil, err
	}
	f := &flatMachine{w: w, number: number}
	m.AddDevice(f)
	if err = gokvmhost.LoadLinux(m, bytes.NewReader(flatguest.LeastKernel()), nil, ""); err != nil {
		return nil, errors.Join(err, gokvmhost.CloseMachine(m))
	}
	h, err := gokvmhost.Attach(m, devices)
	if err != nil {
		return nil, errors.Join(err, gokvmhost.CloseMachine(m))
	}
	f.gokvmMachine = &gokvmMachine{h, m}
	mem := h.Blocks()[0].Host
	clear(mem)
	err = flatguest.Load(mem, w.params)
	for i, v := range h.VM().VCPUs() {
		regs, e1 := v.Regs()
		sregs, e2 := v.Sregs()
		flatguest.SetBootState(i, &regs, &sregs)
		err = errors.Join(err, e1, e2, v.SetSregs(sregs), v.SetRegs(regs), v.SetRunnable())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// A flatProcess is one run of the program.
type flatProcess struct {
	done    chan error
	stop    context.CancelFunc
	console *console
	hand    chan chan<- os.Signal
	said    *bytes.Buffer // with w.mu held
}

// run runs the program.
func (w *flatWorld) run(args ...string) *flatProcess {
	w.t.Helper()
	o, err := parseOptions(append(args, "-insecure", "-json", "-mem", "32M"), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	number := len(w.said)
	p := &flatProcess{done: make(chan error, 1), hand: make(chan chan<- os.Signal, 1), said: new(bytes.Buffer)}
	w.said = append(w.said, p.said)
	o.hw = thisHost
	o.hw.memory = w.memory
	o.hw.machine = func(o options, devices gokvmhost.Config) (machine, error) { return w.machine(number, o, devices) }
	o.hw.notify = func(c chan<- os.Signal, _ ...os.Signal) { p.hand <- c }
	first := true
	o.hw.dial = func(ctx context.Context, address string) (net.Conn, error) {
		if !first && w.gone {
			return nil, errors.New("nobody is there")
		}
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if first && err == nil && w.broken != nil {
			c = w.broken(c)
		}
		first = false
		return c, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.stop = cancel
	std := stdio{strings.NewReader(""), lockedWriter{w, p.said}, io.Discard}
	c := newConsole(std, true, nil)
	p.console = c
	run := runRoaming
	if o.mode == modePrimary {
		run = runProtected
	}
	go func() { p.done <- run(ctx, o, c, newPrinter(o, std, c)) }()
	w.t.Cleanup(func() {
		cancel()
		w.end(p)
	})
	return p
}

type lockedWriter struct {
	w  *flatWorld
	to *bytes.Buffer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	return l.to.Write(p)
}

// end waits for the end of a process.
func (w *flatWorld) end(p *flatProcess) error {
	w.t.Helper()
	select {
	case err := <-p.done:
		p.done <- err
		return err
	case <-time.After(simPatience):
		w.t.Fatal("a process does not end: ", w.told())
		return nil
	}
}

// until waits for something.
func (w *flatWorld) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(simPatience); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		done := ok()
		w.mu.Unlock()
		switch {
		case done:
			return
		case time.Now().After(end):
			w.t.Fatalf("waited in vain for %s; %s", what, w.told())
		}
	}
}

func (w *flatWorld) told() (all string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, b := range w.said {
		all += fmt.Sprintf("\nprocess %d: %s", i, b)
	}
	return all
}

// emits waits until a process has emitted so many frames more.
func (w *flatWorld) emits(number, more int) {
	w.t.Helper()
	w.until(fmt.Sprintf("frames of process %d", number), func() bool {
		n := 0
		for _, at := range w.where {
			if at == number {
				n++
			}
		}
		return n >= more
	})
}

// check compares all that the guest has ever emitted with the model: it has never run on two
// hosts, and nothing was lost.
func (w *flatWorld) check(t *testing.T) {
	t.Helper()
	model, err := flatguest.NewModel(w.params, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, f := range w.frames {
		if n, h := model.Next(f.T); f.N != n || f.H != h {
			t.Fatalf("frame %d, of process %d, is %+v; the model says round %d, hash %#x", i, w.where[i], f, n, h)
		}
		if i > 0 && w.where[i] < w.where[i-1] {
			t.Fatalf("frame %d is of process %d again", i, w.where[i])
		}
	}
}

// untilMissed is a source's connection that breaks behind the package, as soon as the
// destination has asked for memory: its guest waits for that then.
type untilMissed struct {
	net.Conn
	tail  []byte
	read  []byte
	once  sync.Once
	asked chan struct{}
}

func (u *untilMissed) Write(p []byte) (int, error) {
	ping4 := []byte{8, 0, 2, 0, 4, 0, 0, 0, 4} // behind the package
	if !bytes.HasSuffix(u.tail, ping4) {
		u.tail = append(u.tail, p...)
		u.tail = u.tail[max(0, len(u.tail)-len(ping4)):]
		return u.Conn.Write(p)
	}
	select {
	case <-u.asked:
	case <-time.After(time.Minute):
	}
	return 0, errors.Join(errors.New("broken"), u.Conn.Close())
}

func (u *untilMissed) Read(p []byte) (int, error) {
	n, err := u.Conn.Read(p)
	u.read = append(u.read, p[:n]...)
	if err != nil || bytes.Contains(u.read, []byte(kvm.RAMBlock)) { // of a REQ_PAGES
		u.once.Do(func() { close(u.asked) })
	}
	return n, err
}

// moves runs two processes, and has the guest of the second, which has run for a while, move
// to the first.
func (w *flatWorld) moves(args []string) (to, from *flatProcess) {
	w.t.Helper()
	to = w.run(append([]string{modeReceive, "-listen", "127.0.0.1:0"}, args...)...)
	address := ""
	w.until("the port", func() bool {
		_, address, _ = strings.Cut(to.said.String(), "on 127.0.0.1:")
		address, _, _ = strings.Cut(address, `"`)
		return address != ""
	})
	from = w.run(append([]string{modeMigrate, "-kernel", "none", "-peer", "127.0.0.1:" + address}, args...)...)
	w.emits(1, 100)
	(<-from.hand) <- syscall.SIGUSR2
	return to, from
}

// A guest that waits for the memory of a host that is gone is lost at the end of -give-up, or
// some time after an order to end; on the host that sent it, it goes on from where it stood
// still, if a person says so.
func TestAHostThatIsGoneInPostcopyDoesNotHoldTheOther(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	needPostcopy(t)
	w := &flatWorld{t: t, params: flatguest.Params{VCPUs: 1, Pages: 64, Touch: 4, Delay: 2000, Seed: 6}, gone: true}
	w.broken = func(c net.Conn) net.Conn { return &untilMissed{Conn: c, asked: make(chan struct{})} }
	to, from := w.moves([]string{"-max-downtime", "1ns", "-postcopy", "-give-up", "10ms"})
	if err := w.end(to); !errors.Is(err, errHalf) {
		t.Errorf("%v; %s", err, w.told())
	}
	w.until("the source to call", func() bool { return strings.Contains(from.said.String(), phase("broken")) })
	_, order, _ := from.console.mode()
	order('g')
	w.until("the source to go on", func() bool { return strings.Contains(from.said.String(), "as ordered") })
	w.emits(1, 1+w.emitted(1))
	from.stop()
	if err := w.end(from); err != nil {
		t.Error(err, w.told())
	}
}

// emitted returns how many frames a process has emitted.
func (w *flatWorld) emitted(number int) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, at := range w.where {
		if at == number {
			n++
		}
	}
	return n
}

// The guest goes on exactly where it stood still: by precopy, and by postcopy with a
// connection that breaks while it waits for memory.
func TestAGuestOnKVMMovesFromProcessToProcess(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	for _, mode := range []string{"precopy", "postcopy"} {
		t.Run(mode, func(t *testing.T) {
			w := &flatWorld{t: t, params: flatguest.Params{VCPUs: 1, Pages: 64, Touch: 4, Delay: 2000, Seed: 5}}
			args := []string{"-max-downtime", "1h"}
			disk := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
			if mode == "postcopy" {
				needPostcopy(t)
				args = []string{"-max-downtime", "1ns", "-postcopy"}
				w.broken = func(c net.Conn) net.Conn { return &untilMissed{Conn: c, asked: make(chan struct{})} }
			}
			args = append(args, "-disk", disk)
			to, from := w.moves(args)
			if err := w.end(from); err != nil {
				t.Error(err, w.told())
			}
			w.emits(0, 100)
			to.stop()
			if err := w.end(to); err != nil {
				t.Error(err, w.told())
			}
			for i := range w.where { // the second process had the guest first
				w.where[i] = 1 - w.where[i]
			}
			w.check(t)
			w.mu.Lock()
			defer w.mu.Unlock()
			for p, want := range map[*flatProcess]string{from: "moved", to: "arrived"} {
				said := p.said.String()
				if !strings.Contains(said, phase(want)) {
					t.Errorf("not %s: %s", want, said)
				}
				if mode == "postcopy" && !strings.Contains(said, phase("recovered")) {
					t.Errorf("the connection did not break: %s", said)
				}
			}
		})
	}
}

// needPostcopy skips the test where no guest can run before its memory is there.
func needPostcopy(t *testing.T) {
	t.Helper()
	lazy, err := ram.NewLazy(nil)
	if err == nil {
		err = lazy.Probe()
	}
	require.Granted(t, require.Userfaultfd, err)
}
