//go:build linux && amd64

package gokvmhost_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"math/bits"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/kvm/internal/fake"
	"github.com/gocolo/lockstep/kvm/pc"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// linuxEnv names a directory with a kernel (vmlinuz) and those of guestModules that
// it does not have built in. The guest's userland is this test binary, which must
// be static (CGO_ENABLED=0).
const linuxEnv = "LOCKSTEP_LINUX"

const linuxMemory = 128 << 20

// linuxKinds are the ways in which a guest sees its interrupts and timers, in machines of
// gokvm's and of package pc, on which they are built.
var linuxKinds = []struct {
	name, cmdline string
	vcpus         int
	own           bool
}{
	{"PIC and PIT", "acpi=off", 1, false},
	{"ACPI, 1 vCPU", "", 1, false},
	{"ACPI, 2 vCPUs, package pc", "", 2, true},
}

// linux is a Linux guest: what it has, wherever it runs.
type linux struct {
	t       *testing.T
	vcpus   int
	own     bool // in a machine of package pc
	more    bool // own, with a second disk and card, offloads and an entropy device
	disk    *fake.Disk
	second  *fake.Disk
	console *lines
	initrd  []byte
	dir     string
	cmdline string
	what    string // where in the test
}

func newLinux(t *testing.T, vcpus int, cmdline string) *linux {
	t.Helper()
	dir := os.Getenv(linuxEnv)
	if dir == "" {
		t.Skipf("%s names no directory with a kernel", linuxEnv)
	}
	return &linux{
		t: t, vcpus: vcpus, dir: dir,
		disk:    fake.NewDisk(diskBlocks * diskBlock),
		second:  fake.NewDisk(diskBlocks * diskBlock),
		console: &lines{news: make(chan struct{}, 1)},
		initrd:  linuxInitrd(t, dir),
		cmdline: "console=ttyS0 quiet panic=-1 nokaslr cryptomgr.notests rdinit=/init " + guestEnv + "=1 " + cmdline,
	}
}

// images returns what is on the disks, and putImages puts it back.
func (l *linux) images() [2][]byte {
	return [2][]byte{bytes.Clone(l.disk.Data), bytes.Clone(l.second.Data)}
}

func (l *linux) putImages(images [2][]byte) {
	copy(l.disk.Data, images[0])
	copy(l.second.Data, images[1])
}

// linuxInitrd returns a cpio archive with this binary as init, and the modules.
func linuxInitrd(t *testing.T, dir string) []byte {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	binary, err := os.ReadFile(self)
	must(t, err)
	var b bytes.Buffer
	entry := func(name string, mode, major, minor int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			b.Len(), mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
		pad := func() {
			for b.Len()%4 != 0 {
				b.WriteByte(0)
			}
		}
		pad()
		b.Write(data)
		pad()
	}
	entry("dev", 0o40755, 0, 0, nil)
	entry("dev/console", 0o20600, 5, 1, nil)
	entry("modules", 0o40755, 0, 0, nil)
	entry("init", 0o100755, 0, 0, binary)
	for _, name := range append(slices.Clone(guestModules), randomModule) {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			entry("modules/"+name, 0o100644, 0, 0, data)
		}
	}
	entry("TRAILER!!!", 0, 0, 0, nil)
	return b.Bytes()
}

// place is a machine in which the guest can run.
type place struct {
	host
	boots func(kernel, initrd io.ReaderAt, cmdline string) error
	grown func(size int64) error // the guest's first disk
	t     *testing.T
	reg   vmstate.Registry
	mem   []byte
	stale []uint64 // pages in which it differs from the guest's memory elsewhere
	stop  context.CancelFunc
	done  chan error
}

// host has the methods that gokvmhost.Host and pc.Machine share.
type host interface {
	colo.VM
	Run(context.Context) error
	Register(*vmstate.Registry) error
	VM() *kvm.VM
	Blocks() []ram.Block
	Input([]byte) (int, error)
	Close() error
}

// echo is the network: what the guest sends comes back, behind a header of vnet bytes.
type echo struct {
	vnet int
	back *func(frame []byte) error
}

func (e echo) WritePacket(frame []byte) error {
	if len(frame) == e.vnet+frameLength && binary.BigEndian.Uint16(frame[e.vnet+12:]) == guestFrame {
		(*e.back)(frame)
	}
	return nil
}

func (echo) Room() <-chan struct{} { return nil }

// newPlace returns a machine without anything in it.
func (l *linux) newPlace() *place {
	l.t.Helper()
	p := &place{t: l.t}
	var back, back2 func(frame []byte) error
	mac, log := [6]byte{2, 0, 0, 0, 0, 1}, slog.New(slog.NewTextHandler(os.Stdout, nil))
	if l.own {
		devices := pc.Devices{
			Console: l.console, Log: log,
			Disks: []pc.Disk{{Storage: l.disk}}, NICs: []pc.NIC{{Uplink: echo{0, &back}, MAC: mac}},
		}
		if l.more {
			devices.Disks = append(devices.Disks, pc.Disk{Storage: l.second, Requests: 4})
			devices.NICs = []pc.NIC{
				{Uplink: echo{12, &back}, VNetHdr: 12, MAC: mac},
				{Uplink: echo{0, &back2}, MAC: [6]byte{2, 0, 0, 0, 0, 2}},
			}
			devices.Random = pc.Random{Source: rand.Reader}
		}
		m, err := pc.Create(pc.Config{VCPUs: l.vcpus, Memory: linuxMemory, Devices: devices})
		must(l.t, err)
		p.host, p.boots, back = m, m.LoadLinux, m.Cards()[0].ReceivePacket
		p.grown = func(size int64) error { return m.DiskGrown(0, size) }
		if l.more {
			back2 = m.Cards()[1].ReceivePacket
		}
	} else {
		m := newMachine(l.t, gokvmhost.MachineConfig{VCPUs: l.vcpus, Memory: linuxMemory})
		h, err := gokvmhost.Attach(m, gokvmhost.Config{Console: l.console, Disk: l.disk, Uplink: echo{0, &back}, MAC: mac, Log: log})
		must(l.t, err)
		p.host, p.grown, back = h, h.DiskGrown, h.ReceivePacket
		p.boots = func(kernel, initrd io.ReaderAt, cmdline string) error {
			return gokvmhost.LoadLinux(m, kernel, initrd, cmdline)
		}
	}
	l.t.Cleanup(func() {
		p.halt()
		must(l.t, p.Close())
	})
	must(l.t, p.Register(&p.reg))
	p.mem = p.Blocks()[0].Host
	p.stale = make([]uint64, len(p.mem)/kvm.PageSize/64)
	return p
}

// boot returns a machine whose guest has begun with all of its jobs, and runs.
func (l *linux) boot() *place {
	l.t.Helper()
	p := l.newPlace()
	kernel, err := os.Open(filepath.Join(l.dir, "vmlinuz"))
	must(l.t, err)
	defer kernel.Close()
	must(l.t, p.boots(kernel, bytes.NewReader(l.initrd), l.cmdline))
	begun := time.Now()
	p.run()
	must(l.t, p.Resume(l.t.Context()))
	l.awaitFor(bootPatience, p, "boot", func() bool {
		return l.console.last("job") > 2 && l.console.last("disk") > 2 && l.console.last("frame") > 2 &&
			(!l.more || l.turns() > 0)
	})
	l.t.Logf("booted in %v, and %d rounds", time.Since(begun).Round(time.Millisecond), l.console.last("job"))
	if l.more != l.console.has(offloadsTaken) {
		l.fail("the guest has offloads where its card has none, or none where its card has them")
	}
	if l.vcpus > 1 && !l.console.has(fmt.Sprintf("guest: %d CPUs", l.vcpus)) {
		l.fail("the guest has not found its CPUs")
	}
	l.what = "boot"
	l.check() // what it complains of now is not what the test does to it
	return p
}

// turns returns how many turns each of the second disk, the second card and the entropy
// device has had at least.
func (l *linux) turns() uint64 {
	return min(l.console.last("disk2"), l.console.last("frame2"), l.console.last("random"))
}

func (p *place) run() {
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.done = cancel, make(chan error, 1)
	go func() { p.done <- p.Run(ctx) }()
}

// halt ends Run; all that the guest has said is then on the console.
func (p *place) halt() {
	if p.stop == nil {
		return
	}
	p.stop()
	if err := <-p.done; !errors.Is(err, context.Canceled) {
		p.t.Error("Run:", err)
	}
	p.stop = nil
}

// save returns the device state of the paused guest.
func (p *place) save() []byte { p.t.Helper(); return saved(p.t, &p.reg) }

func (p *place) load(state []byte) { p.t.Helper(); reload(p.t, &p.reg, state) }

// patience is how long a step of the guest may take: it takes a second or two. The boot
// takes some thirty times as long, and on a machine that gets a tenth of a CPU, as one that
// is emulated may, some minutes in which it gets on all the time.
const (
	patience     = 3 * time.Minute
	bootPatience = 6 * time.Minute
)

// ended returns what Run ends with, of a guest that was told to end.
func (l *linux) ended(p *place, order string) error {
	l.t.Helper()
	select {
	case err := <-p.done:
		return err
	case <-time.After(patience):
		l.evidence(p)
		l.fail("the guest hangs: told to end by " + order)
		return nil
	}
}

// await waits until the guest has said something, or n more rounds of it.
func (l *linux) await(p *place, what string, done func() bool) {
	l.t.Helper()
	l.awaitFor(patience, p, what, done)
}

func (l *linux) awaitFor(long time.Duration, p *place, what string, done func() bool) {
	l.t.Helper()
	deadline := time.After(long)
	for !done() {
		select {
		case err := <-p.done:
			p.done <- err
			for _, v := range p.VM().VCPUs() {
				l.t.Log(vcpuSays(v, p.mem))
			}
			l.fail("Run has ended: " + fmt.Sprint(err))
		case <-l.console.news:
		case <-deadline:
			l.evidence(p)
			l.fail("the guest hangs: " + what)
		}
	}
}

func (l *linux) fail(why string) {
	l.t.Helper()
	l.failAt(math.MaxInt, why)
}

// failAt fails with what the guest has said from about a line on, or at last.
func (l *linux) failAt(line int, why string) {
	l.t.Helper()
	const most, before = 60, 5
	l.console.mu.Lock()
	said := l.console.list
	said = said[max(0, min(line-before, len(said)-most)):]
	said = said[:min(most, len(said))]
	l.console.mu.Unlock()
	l.t.Fatalf("%s: %s\nthe guest's console:\n%s", l.what, why, strings.Join(said, "\n"))
}

// goOn lets the guest run until it has done more of each of its jobs.
func (l *linux) goOn(p *place) {
	l.t.Helper()
	job, disk, frame := l.console.last("job"), l.console.last("disk"), l.console.last("frame")
	l.goOnUntil(p, func() bool {
		return l.console.last("job") > job+1 && l.console.last("disk") > disk && l.console.last("frame") > frame
	})
}

// goOnWithAll lets it run until it has done more with all of its devices.
func (l *linux) goOnWithAll(p *place) {
	l.t.Helper()
	l.goOn(p)
	if turns := l.turns(); l.more {
		l.goOnUntil(p, func() bool { return l.turns() > turns })
	}
}

func (l *linux) goOnUntil(p *place, done func() bool) {
	l.t.Helper()
	p.run()
	must(l.t, p.Resume(l.t.Context()))
	l.await(p, "going on", done)
	must(l.t, p.Pause(l.t.Context()))
	p.halt()
}

// check compares all that the guest's computation has said with the same
// computation here, and looks for complaints.
func (l *linux) check() {
	l.t.Helper()
	l.console.mu.Lock()
	list := slices.Clone(l.console.list)
	l.console.mu.Unlock()
	model, rounds := newGuestJob(), 0
	next := map[string]uint64{"disk": 1, "frame": 1, "disk2": 1, "frame2": 1, "random": 1}
	for i, s := range list {
		kind, rest, _ := strings.Cut(s, " ")
		switch {
		case strings.Contains(s, "soft lockup"), strings.Contains(s, "rcu:"): // in a job's line too
			l.failAt(i, "the guest was late: "+s)
		case kind == "job":
			if want := model.round(); s != want {
				l.fail(fmt.Sprintf("the guest says %q, it should be %q", s, want))
			}
			rounds++
		case next[kind] > 0:
			var n uint64
			if fmt.Sscan(rest, &n); n != next[kind] {
				l.fail(fmt.Sprintf("the guest says %q after %d", s, next[kind]-1))
			}
			next[kind]++
		case strings.Contains(s, "BUG"), strings.Contains(s, "Oops"), strings.Contains(s, "panic"),
			strings.Contains(s, "guest: disk"), strings.Contains(s, "guest: network"), strings.Contains(s, "guest: randomness"), strings.Contains(s, "nobody cared"):
			l.failAt(i, "the guest complains: "+s)
		}
	}
	l.t.Logf("%d rounds, %d and %d blocks, %d and %d frames, %d times random", rounds,
		next["disk"]-1, next["disk2"]-1, next["frame"]-1, next["frame2"]-1, next["random"]-1)
}

// take reads the dirty log of a paused guest: those pages of shadow become the
// guest's, and are stale in the other places.
func (p *place) take(shadow []byte, others ...*place) (pages int) {
	p.t.Helper()
	dirty := make([]uint64, len(p.stale))
	must(p.t, p.VM().ReadDirty(kvm.RAMBlock, dirty))
	pages = copyPages(shadow, p.mem, dirty)
	for _, o := range others {
		for i, w := range dirty {
			o.stale[i] |= w
		}
	}
	if !bytes.Equal(shadow, p.mem) {
		p.t.Fatal("a copy that follows the dirty log is not the guest's memory")
	}
	return pages
}

// put brings the stale pages of a place up to shadow.
func (p *place) put(shadow []byte) {
	copyPages(p.mem, shadow, p.stale)
	clear(p.stale)
}

// same fails unless the guest's memory is shadow, page for page. (Emulated, that is the
// most of what a generation takes; it is looked at once, when all is done to it.)
func (p *place) same(shadow []byte) {
	p.t.Helper()
	if !bytes.Equal(shadow, p.mem) {
		p.t.Fatal("the memory of the next generation is not that of the last, or loading the devices has changed it")
	}
}

func copyPages(to, from []byte, bitmap []uint64) (n int) {
	for i, w := range bitmap {
		for ; w != 0; w &= w - 1 {
			at := (i*64 + bits.TrailingZeros64(w)) * kvm.PageSize
			copy(to[at:at+kvm.PageSize], from[at:])
			n++
		}
	}
	return n
}

func all(bitmap []uint64) []uint64 {
	for i := range bitmap {
		bitmap[i] = ^uint64(0)
	}
	return bitmap
}
