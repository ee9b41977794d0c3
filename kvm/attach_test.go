//go:build linux && amd64

package kvm

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// hostVM has the descriptors and mappings of a host VMM, here of a VM without interrupt
// controllers in the kernel.
type hostVM struct {
	vm, vcpu int
	mem, run []byte
}

func newHostVM(t *testing.T) *hostVM {
	t.Helper()
	require.Usable(t, require.KVM, Probe)
	must := func(fd int, err error) int {
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	h := &hostVM{}
	kvm := must(openKVM())
	defer unix.Close(kvm)
	h.vm = must(ioctlValue(kvm, "KVM_CREATE_VM", kvmCreateVM, 0))
	t.Cleanup(func() { unix.Close(h.vm) })
	h.vcpu = must(ioctlValue(h.vm, "KVM_CREATE_VCPU", kvmCreateVCPU, 0))
	t.Cleanup(func() { unix.Close(h.vcpu) })
	size := must(ioctlValue(kvm, "KVM_GET_VCPU_MMAP_SIZE", kvmGetVCPUMmapSize, 0))
	var err error
	if h.run, err = unix.Mmap(h.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(h.run) })
	if h.mem, err = unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(h.mem) })
	cpuid, err := supportedCPUID(kvm)
	if err != nil {
		t.Fatal(err)
	}
	table := &cpuidTable{n: uint32(len(cpuid))}
	copy(table.entries[:], cpuid)
	must(ioctl(h.vcpu, "KVM_SET_CPUID2", kvmSetCPUID2, unsafe.Pointer(table)))
	return h
}

// attach has the package adopt the VM.
func (h *hostVM) attach(t *testing.T) (*VM, *VCPU, *vmstate.Registry) {
	t.Helper()
	vm, err := Attach(uintptr(h.vm), AttachConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.AddSlot(Slot{Block: "pc.ram", Mem: h.mem}); err != nil {
		t.Fatal(err)
	}
	v, err := vm.AddVCPU(uintptr(h.vcpu), h.run)
	if err != nil {
		t.Fatal(err)
	}
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	return vm, v, reg
}

// boot puts the test program into the VM.
func (h *hostVM) boot(t *testing.T, v *VCPU, p guest.Params) {
	t.Helper()
	if err := guest.Load(h.mem, p); err != nil {
		t.Fatal(err)
	}
	regs, err := v.Regs()
	sregs, err2 := v.Sregs()
	guest.SetBootState(0, &regs, &sregs)
	if err := errors.Join(err, err2, v.SetSregs(sregs), v.SetRegs(regs)); err != nil {
		t.Fatal(err)
	}
}

func TestAnAdoptedVMWithoutInterruptControllersIsSavedAndRestored(t *testing.T) {
	p := guest.Params{Pages: 64, Touch: 5}
	model, err := guest.NewModel(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	var frames int
	device := func(mem []byte, until int) func(*IO) error {
		return func(x *IO) error {
			if x.In {
				x.Data[0] = guest.StatusReady
				return nil
			}
			b, err := guest.Emitted(mem, uint64(guest.FrameBase))
			if err != nil {
				return err
			}
			f, err := guest.ParseFrame(b)
			if err != nil {
				return err
			}
			if n, h := model.Next(f.T); f.N != n || f.H != h {
				t.Errorf("frame %+v, model says round %d, hash %#x", f, n, h)
			}
			if frames++; frames == until {
				return errStop
			}
			return nil
		}
	}

	a := newHostVM(t)
	vm, v, reg := a.attach(t)
	if v.state.apic || vm.chips.hasChips || vm.chips.hasPIT {
		t.Fatal("the VM has interrupt controllers")
	}
	a.boot(t, v, p)
	if err := v.Run(t.Context(), v.Dispatch(Handler{IO: device(a.mem, 100)})); !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	stream := encode(t, reg)
	vm.Close()

	b := newHostVM(t)
	vm2, v2, reg2 := b.attach(t)
	copy(b.mem, a.mem)
	if err := reg2.LoadDevices(stream, nil); err != nil {
		t.Fatal(err)
	}
	if err := reg2.Commit(); err != nil {
		t.Fatal(err)
	}
	encode(t, reg2)
	if v2.state.regs != v.state.regs || v2.state.sregs != v.state.sregs || v2.state.xcrs != v.state.xcrs ||
		v2.state.debug != v.state.debug || v2.state.events != v.state.events || v2.state.mp != v.state.mp ||
		v2.state.cpuid != v.state.cpuid || !bytes.Equal(v2.state.xsave, v.state.xsave) {
		t.Error("what was restored saves differently")
	}
	for i, m := range v.state.msr.entries[:v.state.msr.n] {
		const tsc, hypervRuntime, hypervTime = 0x10, 0x40000010, 0x40000020 // go on by themselves
		if got := v2.state.msr.entries[i]; got != m && m.Index != tsc && m.Index != hypervRuntime && m.Index != hypervTime {
			t.Errorf("MSR %#x is %#x, was %#x", m.Index, got.Data, m.Data)
		}
	}
	if err := v2.Run(t.Context(), v2.Dispatch(Handler{IO: device(b.mem, 300)})); !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	if frames != 300 {
		t.Errorf("%d frames", frames)
	}
	vm2.Close()
	if _, err := unix.FcntlInt(uintptr(a.vm), unix.F_GETFD, 0); err != nil {
		t.Error("the host's descriptor was closed:", err)
	}
}

var errStop = errors.New("stop")

func TestStateOfOneKindOfVMIsRefusedByAnother(t *testing.T) {
	_, _, without := newHostVM(t).attach(t)
	with, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer with.Close()
	reg := &vmstate.Registry{}
	if err := with.Register(reg); err != nil {
		t.Fatal(err)
	}
	if err := without.LoadDevices(encode(t, reg), nil); !errors.Is(err, vmstate.ErrValue) {
		t.Error("interrupt controllers there, none here:", err)
	}
	if err := reg.LoadDevices(encode(t, without), nil); !errors.Is(err, vmstate.ErrValue) {
		t.Error("none there, interrupt controllers here:", err)
	}
}

func TestDevicesOfARunningVMAreNeitherSavedNorRestored(t *testing.T) {
	h := newHostVM(t)
	vm, v, reg := h.attach(t)
	h.boot(t, v, guest.Params{})
	stream := encode(t, reg)
	inside, leave := make(chan struct{}), make(chan struct{})
	ended := make(chan error)
	go func() {
		ended <- v.Run(context.Background(), func(*RunData) error {
			select {
			case <-leave:
			default:
				close(inside)
				<-leave
			}
			return errStop
		})
	}()
	<-inside
	for _, d := range []interface {
		PreSave() error
		PostLoad(uint32) error
	}{chipDevice{vm}, pitDevice{vm}, vcpuDevice{v}, clockDevice{vm}} {
		if err := d.PreSave(); !errors.Is(err, ErrRunning) {
			t.Errorf("%T saved: %v", d, err)
		}
		if err := d.PostLoad(1); !errors.Is(err, ErrRunning) {
			t.Errorf("%T restored: %v", d, err)
		}
	}
	if err := reg.LoadDevices(stream, nil); err != nil {
		t.Error("state cannot be decoded while the guest runs:", err)
	}
	reg.Rollback()
	close(leave)
	if err := <-ended; !errors.Is(err, errStop) {
		t.Error(err)
	}
}

// A host that lacks a descriptor to adopt its VM is given an error alone, and has nothing to close. The
// same for a VM that is made.
func TestAVMThatIsNotAdoptedIsNil(t *testing.T) {
	h := newHostVM(t)
	for name, adopt := range map[string]func() (*VM, error){
		"Attach": func() (*VM, error) { return Attach(uintptr(h.vm), AttachConfig{}) },
		"Create": func() (*VM, error) { return Create(Config{Memory: PageSize}) },
	} {
		leaks.Starve(t, func() error {
			vm, err := adopt()
			if err == nil {
				return vm.Close()
			}
			if vm != nil {
				t.Errorf("%s: a VM beside the error %v", name, err)
			}
			return err
		})
	}
}
