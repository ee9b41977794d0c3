//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// Requests (linux/kvm.h).
const (
	reqCreateVM      = 0xae01
	reqRunSize       = 0xae04
	reqCreateVCPU    = 0xae41
	reqSetTSS        = 0xae47
	reqSetIdentity   = 0x4008ae48
	reqCreateIRQChip = 0xae60
	reqCreatePIT2    = 0x4040ae77
	reqEnableCap     = 0x4068aea3
	reqGetMSRs       = 0xc008ae88
	reqSetMSRs       = 0x4008ae89
)

// enabled returns what enables a capability of a VM or of a vCPU, or skips the test where KVM lacks it.
func enabled(t testing.TB, capability uint32, argument uint64) func(fd int) {
	return func(fd int) {
		t.Helper()
		e := struct {
			capability, flags uint32
			args              [4]uint64
			_                 [64]byte
		}{capability: capability, args: [4]uint64{argument}}
		if _, err := rawIoctl(fd, reqEnableCap, unsafe.Pointer(&e)); err != nil {
			t.Skipf("this KVM has no capability %d: %v", capability, err)
		}
	}
}

func rawIoctl(fd int, req uintptr, arg unsafe.Pointer) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return int(n), errno
		}
	}
}

func rawValue(fd int, req, arg uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// adopted is a VM as a host VMM has it, with its descriptors, adopted by the package.
type adopted struct {
	testing.TB
	*kvm.VM
	dev, fd int
	fds     []int // of the vCPUs
	vcpus   []*kvm.VCPU
	mem     []byte
	reg     *vmstate.Registry
}

type pages struct{ n, gap int } // gap: pages of nothing before it

// newAdopted makes a VM, calls set for its descriptor, and has it adopted with slots
// of one block.
func newAdopted(t testing.TB, vcpus int, set func(vm int), slots ...pages) *adopted {
	t.Helper()
	return newAdoptedWith(t, kvm.AttachConfig{}, vcpus, set, slots...)
}

// newAdoptedWith is newAdopted with a configuration.
func newAdoptedWith(t testing.TB, cfg kvm.AttachConfig, vcpus int, set func(vm int), slots ...pages) *adopted {
	t.Helper()
	require.Usable(t, require.KVM, kvm.Probe)
	x := &adopted{TB: t, reg: new(vmstate.Registry)}
	must := func(n int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	x.dev = must(unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0))
	t.Cleanup(func() { unix.Close(x.dev) })
	x.fd = must(rawValue(x.dev, reqCreateVM, 0))
	t.Cleanup(func() { unix.Close(x.fd) })
	address := uint64(0xfffbc000)
	must(rawIoctl(x.fd, reqSetIdentity, unsafe.Pointer(&address)))
	must(rawValue(x.fd, reqSetTSS, 0xfffbd000))
	must(rawValue(x.fd, reqCreateIRQChip, 0))
	var pit [64]byte
	must(rawIoctl(x.fd, reqCreatePIT2, unsafe.Pointer(&pit)))
	if set != nil {
		set(x.fd)
	}
	var err error
	cfg.KVM = x.dev
	if x.VM, err = kvm.Attach(uintptr(x.fd), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.VM.Close(); err != nil {
			t.Error(err)
		}
	})
	if len(slots) == 0 {
		slots = []pages{{1024, 0}}
	}
	all := 0
	for _, s := range slots {
		all += (s.n + 63) &^ 63
	}
	if x.mem, err = unix.Mmap(-1, 0, all*kvm.PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(x.mem) })
	gpa, off := uint64(0), uint64(0)
	for i, s := range slots {
		gpa += uint64(s.gap) * kvm.PageSize
		n := uint64(s.n) * kvm.PageSize
		if err := x.AddSlot(kvm.Slot{ID: uint32(i), Block: "pc.ram", Offset: off, GPA: gpa, Mem: x.mem[off : off+n]}); err != nil {
			t.Fatal(err)
		}
		gpa += n
		off += (n + 64*kvm.PageSize - 1) &^ (64*kvm.PageSize - 1)
	}
	size := must(rawValue(x.dev, reqRunSize, 0))
	for i := range max(vcpus, 1) {
		fd := must(rawValue(x.fd, reqCreateVCPU, uintptr(i)))
		t.Cleanup(func() { unix.Close(fd) })
		run, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Munmap(run) })
		v, err := x.AddVCPU(uintptr(fd), run)
		if err != nil {
			t.Fatal(err)
		}
		cpuid, err := kvm.SupportedCPUID(i)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.SetCPUID(cpuid); err != nil {
			t.Fatal(err)
		}
		x.fds, x.vcpus = append(x.fds, fd), append(x.vcpus, v)
	}
	if err := x.Register(x.reg); err != nil {
		t.Fatal(err)
	}
	if err := x.Pause(context.Background()); err != nil {
		t.Fatal(err)
	}
	return x
}

type oneMSR struct {
	n, _           uint32
	index, reserve uint32
	data           uint64
}

func readMSR(fd int, index uint32) (uint64, bool) {
	m := oneMSR{n: 1, index: index}
	n, err := rawIoctl(fd, reqGetMSRs, unsafe.Pointer(&m))
	return m.data, err == nil && n == 1
}

func writeMSR(fd int, index uint32, v uint64) bool {
	m := oneMSR{n: 1, index: index, data: v}
	n, err := rawIoctl(fd, reqSetMSRs, unsafe.Pointer(&m))
	return err == nil && n == 1
}

// save returns the devices' state.
func (x *adopted) save() []byte {
	x.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	if err := x.reg.SaveDevices(w); err != nil {
		x.Fatal(err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		x.Fatal(err)
	}
	return b.Bytes()
}

// stage decodes a state; commit makes it the VM's.
func (x *adopted) stage(state []byte) error {
	x.reg.NewSession()
	return x.reg.LoadDevices(state, nil)
}

func (x *adopted) load(state []byte) {
	x.Helper()
	if err := x.stage(state); err != nil {
		x.Fatal(err)
	}
	if err := x.reg.Commit(); err != nil {
		x.Fatal(err)
	}
}

// dirty returns the pages that ReadDirty names, as numbers in the block.
func (x *adopted) dirty() (list []int) {
	x.Helper()
	bitmap := make([]uint64, len(x.mem)/kvm.PageSize/64)
	if err := x.ReadDirty("pc.ram", bitmap); err != nil {
		x.Fatal(err)
	}
	for i := range len(x.mem) / kvm.PageSize {
		if bitmap[i/64]>>(i%64)&1 != 0 {
			list = append(list, i)
		}
	}
	return list
}

// touch has KVM itself write to a page of the guest's memory: the wall clock.
func (x *adopted) touch(gpa uint64) bool {
	return writeMSR(x.fds[0], 0x4b564d00, gpa) || writeMSR(x.fds[0], 0x11, gpa)
}

// streamCPUID is a CPUID entry as a stream has it.
type streamCPUID struct {
	Function, Index, Flags, Eax, Ebx, Ecx, Edx uint32
	Padding                                    [3]uint32
}

func (e streamCPUID) bytes() []byte {
	b, _ := binary.Append(nil, binary.LittleEndian, e)
	return b
}

// withCPUID returns a state with one CPUID entry changed, as from a host with another
// CPU.
func withCPUID(t *testing.T, x *adopted, state []byte, function, index uint32, change func(*streamCPUID)) []byte {
	t.Helper()
	list, err := x.vcpus[0].CPUID()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range list {
		if c.Function == function && c.Index == index {
			e := streamCPUID{c.Function, c.Index, c.Flags, c.Eax, c.Ebx, c.Ecx, c.Edx, [3]uint32{}}
			old := e.bytes()
			change(&e)
			return bytes.Replace(state, old, e.bytes(), 1)
		}
	}
	t.Fatalf("no leaf %#x.%d", function, index)
	return nil
}

// tscOffset returns a vCPU's TSC offset; ok is false where KVM has none.
func tscOffset(vcpu int) (offset uint64, ok bool) {
	word := new(uint64)
	attr := struct {
		flags, group uint32
		attr, addr   uint64
	}{addr: uint64(uintptr(unsafe.Pointer(word)))}
	_, err := rawIoctl(vcpu, 0x4018aee2, unsafe.Pointer(&attr)) // KVM_GET_DEVICE_ATTR
	runtime.KeepAlive(word)
	return *word, err == nil
}

// clock returns the VM's paravirtual clock.
func (x *adopted) clock() time.Duration {
	x.Helper()
	var data struct {
		clock uint64
		_     [5]uint64
	}
	if _, err := rawIoctl(x.fd, 0x8030ae7c, unsafe.Pointer(&data)); err != nil { // KVM_GET_CLOCK
		x.Fatal(err)
	}
	return time.Duration(data.clock)
}
