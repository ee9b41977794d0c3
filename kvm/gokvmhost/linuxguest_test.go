//go:build linux && amd64

package gokvmhost_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/linuxguest/tsc"
)

// guestEnv on a Linux guest's command line makes this test binary, as its init, the
// guest's load.
const guestEnv = "LOCKSTEP_GUEST"

// clocksEnv on the command line has the guest tell the time as well.
const clocksEnv = "LOCKSTEP_CLOCKS"

// guestClocks tells what the guest's clocks say: the TSC; CLOCK_MONOTONIC, which is made
// of the TSC or of KVM's clock, whichever is the clock source; and how long a turn of it
// took by each at most, so that a step or a standstill shows.
func guestClocks(say func(string, ...any)) {
	source, _ := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	say("guest: clock %s", strings.TrimSpace(string(source)))
	var ts unix.Timespec
	for n := 1; ; n++ {
		before := tsc.Read()
		unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
		mono := ts.Nano()
		unix.ClockGettime(unix.CLOCK_REALTIME, &ts)
		say("clocks %d tsc %d mono %d real %d", n, before, mono, ts.Nano())
		time.Sleep(20 * time.Millisecond)
	}
}

// Jobs of the guest: each says on the console how far it has come.
const (
	jobMemory   = 4 << 20 // bytes
	diskBlock   = 4096
	diskBlocks  = 256
	guestFrame  = 0x88b5 // an EtherType for experiments
	frameLength = 256
)

// guestJob is a computation on integers, floating point and memory in which every
// round depends on all before.
type guestJob struct {
	n, h uint64
	f    float64
	mem  []uint64
}

func newGuestJob() *guestJob {
	j := &guestJob{h: 0x9e3779b97f4a7c15, f: 1, mem: make([]uint64, jobMemory/8)}
	for i := range j.mem {
		j.mem[i] = uint64(i) * 0xbf58476d1ce4e5b9
	}
	return j
}

// round returns what the guest says of its next round.
func (j *guestJob) round() string {
	j.n++
	for i := range 2048 {
		at := (j.h>>20 + uint64(i)*509) % uint64(len(j.mem))
		j.mem[at] = j.mem[at]*6364136223846793005 + j.h
		j.h = bits.RotateLeft64(j.h^j.mem[at], 7) * 0x94d049bb133111eb
		j.f = math.Sqrt(j.f*j.f+float64(j.h>>44)) / 1.0009765625
	}
	return fmt.Sprintf("job %d %016x %016x", j.n, j.h, math.Float64bits(j.f))
}

// diskPattern fills a block with what the guest writes in its nth turn.
func diskPattern(p []byte, n uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n*0x9e3779b97f4a7c15+uint64(i))
	}
}

// guestSays returns how the guest's jobs speak: a line at a time, and the next one when the
// serial line has sent the last.
//
// The kernel sends in the serial line's interrupt, and stays there while there is more to
// send and the line takes it, which ours always does. Where each character costs an
// emulated exit, jobs that do not wait write faster than that: the CPU that has the
// interrupt never leaves it, gets none of the disk and of the network, and after a while
// the kernel says that it is stuck.
func guestSays() func(format string, args ...any) {
	var mu sync.Mutex
	return func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(os.Stdout, format+"\n", args...)
		drain(unix.Stdout)
	}
}

// drain waits until a terminal has sent all that was written to it, as tcdrain does.
func drain(fd int) {
	for unix.IoctlSetInt(fd, unix.TCSBRK, 1) == unix.EINTR {
	}
}

// guestInit is the guest's init. It never returns.
func guestInit() {
	say := guestSays()
	fatal := func(what string, err error) {
		if err != nil {
			say("guest: %s: %v", what, err)
			unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		}
	}
	for _, d := range []struct{ at, kind string }{{"/dev", "devtmpfs"}, {"/proc", "proc"}, {"/sys", "sysfs"}} {
		os.MkdirAll(d.at, 0o755)
		fatal(d.at, unix.Mount(d.kind, d.at, d.kind, 0, ""))
	}
	for _, name := range guestModules {
		fatal(name, loadModule(name))
	}
	say("guest: %d CPUs", runtime.NumCPU())
	if hasOffloads("eth0") {
		say(offloadsTaken)
	}
	go func() { fatal("disk", guestDisk(say, "disk", "/dev/vda", often)) }()
	go func() { fatal("network", guestNetwork(say, "frame", "eth0", often)) }()
	if _, err := os.Stat("/dev/vdb"); err == nil { // it has the second of each
		disk := func() error { return guestDisk(say, "disk2", "/dev/vdb", seldom) }
		network := func() error { return guestNetwork(say, "frame2", "eth1", seldom) }
		if os.Getenv(rebindEnv) != "" {
			disk = func() error { return guestRebindsDisk(say) }
			network = func() error { return guestRebindsNetwork(say) }
		}
		go func() { fatal("disk", disk()) }()
		go func() { fatal("network", network()) }()
		go func() { fatal("randomness", guestRandom(say)) }()
	}
	go guestConsole(say)
	if os.Getenv(growEnv) != "" {
		go guestLengths(say)
	}
	if os.Getenv(clocksEnv) != "" {
		go guestClocks(say)
	}
	for j := newGuestJob(); ; {
		say("%s", j.round())
		time.Sleep(20 * time.Millisecond)
	}
}

// guestModules are the drivers, in the order of their needs. What the kernel has
// built in is not among the files.
var guestModules = []string{
	"virtio_ring.ko", "virtio.ko", "virtio_pci_legacy_dev.ko", "virtio_pci_modern_dev.ko", "virtio_pci.ko",
	"virtio_blk.ko", "failover.ko", "net_failover.ko", "virtio_net.ko",
}

// randomModule is the entropy device's driver, for a guest that has one.
const randomModule = "virtio-rng.ko"

// loadModule loads one of the kernel's modules, unless it is built in.
func loadModule(name string) error {
	f, err := os.Open(filepath.Join("/modules", name))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.FinitModule(int(f.Fd()), "", 0)
}

// offloadsTaken is said by a guest whose driver has taken all that eth0 offers.
const offloadsTaken = "guest: eth0 has offloads"

// hasOffloads reports whether the driver of an interface has taken checksums,
// segmentation and merged buffers, by the numbers of their feature bits.
func hasOffloads(name string) bool {
	features, err := os.ReadFile("/sys/class/net/" + name + "/device/features") // a digit for each
	if err != nil {
		return false
	}
	for _, bit := range []int{0, 1, 7, 8, 11, 12, 15} {
		if bit >= len(features) || features[bit] != '1' {
			return false
		}
	}
	return true
}

// Pauses between two turns of a job.
const (
	often  = 30 * time.Millisecond
	seldom = 500 * time.Millisecond
)

// guestRandom reads what the entropy device gives. That is never the same twice.
func guestRandom(say func(string, ...any)) error {
	if err := loadModule(randomModule); err != nil {
		return err
	}
	const current = "/sys/class/misc/hw_random/rng_current"
	if name, err := os.ReadFile(current); err != nil || !strings.HasPrefix(string(name), "virtio_rng") {
		return fmt.Errorf("%s is %q (%v)", current, name, err)
	}
	source, err := os.Open("/dev/hwrng")
	if err != nil {
		return err
	}
	var last, p [16]byte
	for n := uint64(1); ; n++ {
		if _, err := io.ReadFull(source, p[:]); err != nil {
			return err
		}
		if p == last {
			return fmt.Errorf("%x twice", p)
		}
		last = p
		say("random %d", n)
		time.Sleep(seldom)
	}
}

// guestDisk writes blocks, has them made stable, and reads them back past all
// caches.
func guestDisk(say func(string, ...any), kind, name string, pause time.Duration) error {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	// Direct access wants aligned memory.
	buf, err := unix.Mmap(-1, 0, 2*diskBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	wrote, read := buf[:diskBlock], buf[diskBlock:]
	for n := uint64(1); ; n++ {
		off := int64(n%diskBlocks) * diskBlock
		diskPattern(wrote, n)
		if _, err := f.WriteAt(wrote, off); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if _, err := f.ReadAt(read, off); err != nil {
			return err
		}
		if string(wrote) != string(read) {
			return fmt.Errorf("block %d is not what was written", n)
		}
		say("%s %d", kind, n)
		time.Sleep(pause)
	}
}

// guestNetwork sends numbered frames and waits for each to come back, for ever if
// need be.
func guestNetwork(say func(string, ...any), kind, name string, pause time.Duration) error {
	ifc, err := net.InterfaceByName(name)
	if err != nil {
		return err
	}
	if err := setUp(ifc.Name); err != nil {
		return err
	}
	const protocol = guestFrame>>8 | guestFrame&0xff<<8 // network byte order
	s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW, protocol)
	if err != nil {
		return err
	}
	if err := unix.Bind(s, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: ifc.Index}); err != nil {
		return err
	}
	out, in := make([]byte, frameLength), make([]byte, 2048)
	copy(out, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	copy(out[6:], ifc.HardwareAddr)
	binary.BigEndian.PutUint16(out[12:], guestFrame)
	for n := uint64(1); ; n++ {
		binary.BigEndian.PutUint64(out[14:], n)
		if _, err := unix.Write(s, out); err != nil {
			return err
		}
		for {
			k, err := unix.Read(s, in)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if k >= 22 && binary.BigEndian.Uint64(in[14:]) == n {
				say("%s %d", kind, n)
				break
			}
		}
		time.Sleep(pause)
	}
}

// setUp is "ip link set up".
func setUp(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r); err != nil {
		return err
	}
	r.SetUint16(r.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}

// guestConsole does as it is told on the console.
func guestConsole(say func(string, ...any)) {
	var line []byte
	var c [1]byte
	for {
		if _, err := os.Stdin.Read(c[:]); err != nil {
			if err == io.EOF {
				return
			}
			continue
		}
		if c[0] != '\n' && c[0] != '\r' {
			line = append(line, c[0])
			continue
		}
		switch string(line) {
		case "off":
			syscall.Sync()
			unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		case "reset":
			unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		default:
			say("heard %s", line)
		}
		line = line[:0]
	}
}

// asGuest does not return in a guest.
func asGuest() {
	if os.Getpid() == 1 && os.Getenv(guestEnv) != "" {
		guestInit()
	}
}
