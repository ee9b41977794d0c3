//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// summons is a program in real mode that is called away from what it does: it says numbers at a port,
// at which a summoned brings about what they stand for, and waits until the handlers have counted that. DS is
// at 0, ES at the IOAPIC, FS at the local APIC. Each handler says who it is, asks for a number and says that.
var summons = struct{ start, interrupt, nmi []byte }{
	start: []byte{
		0xb0, 0xff, // mov al, 0xff
		0xe6, 0x21, // out 0x21, al
		0xe6, 0xa1, // out 0xa1, al
		0x64, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00, 0x00, // mov dword fs:0xf0, 0x1ff
		0x26, 0x66, 0xc7, 0x06, 0x00, 0x00, 0x25, 0x00, 0x00, 0x00, // mov dword es:0x0, 0x25
		0x26, 0x66, 0xc7, 0x06, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, // mov dword es:0x10, 0x0
		0x26, 0x66, 0xc7, 0x06, 0x00, 0x00, 0x24, 0x00, 0x00, 0x00, // mov dword es:0x0, 0x24
		0x26, 0x66, 0xc7, 0x06, 0x10, 0x00, 0x40, 0x80, 0x00, 0x00, // mov dword es:0x10, 0x8040
		0xba, 0x00, 0x06, // mov dx, 0x600
		0xfb,       // sti
		0xb0, 0x01, // mov al, 0x1
		0xee,                         // out dx, al
		0x80, 0x3e, 0x00, 0x05, 0x02, // cmp byte 0x500, 0x2
		0x72, 0xf9, // jb, to the comparison
		0xfa,       // cli
		0xb0, 0x01, // mov al, 0x1
		0xee,       // out dx, al
		0xb0, 0x02, // mov al, 0x2
		0xee,                         // out dx, al
		0xfb,                         // sti
		0x80, 0x3e, 0x00, 0x05, 0x04, // cmp byte 0x500, 0x4
		0x72, 0xf9, // jb, to the comparison
		0xfa,       // cli
		0xb0, 0x03, // mov al, 0x3
		0xee,                         // out dx, al
		0x80, 0x3e, 0x01, 0x05, 0x02, // cmp byte 0x501, 0x2
		0x72, 0xf9, // jb, to the comparison
		0xb0, 0x04, // mov al, 0x4
		0xee,                         // out dx, al
		0xf4,                         // hlt
		0x80, 0x3e, 0x01, 0x05, 0x03, // cmp byte 0x501, 0x3
		0x72, 0xf9, // jb, to the comparison
		0xb0, 0x05, // mov al, 0x5
		0xee, // out dx, al
		0xf4, // hlt
	},
	interrupt: []byte{
		0xb0, 0x11, // mov al, 0x11
		0xee,                   // out dx, al
		0xec,                   // in al, dx
		0xee,                   // out dx, al
		0xfe, 0x06, 0x00, 0x05, // inc byte 0x500
		0x64, 0x66, 0xc7, 0x06, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, // mov dword fs:0xb0, 0x0
		0xcf, // iret
	},
	nmi: []byte{
		0xb0, 0x21, // mov al, 0x21
		0xee,                   // out dx, al
		0xec,                   // in al, dx
		0xee,                   // out dx, al
		0xfe, 0x06, 0x01, 0x05, // inc byte 0x501
		0xcf, // iret
	},
}

// What the numbers stand for, and where things are.
const (
	wantsInterrupts = 1 // the IOAPIC's input rises, and stays up for two interrupts
	says            = 2 // nothing
	wantsNMIs       = 3 // one, and another in the midst of its handler
	wantsToStand    = 4 // until an NMI, with interrupts off
	wantsItsEnd     = 5
	inInterrupt     = 0x11
	inNMI           = 0x21

	summonsEntry, summonsInterrupt, summonsNMI = 0x1000, 0x2000, 0x2100

	summonsInput = 10
)

// summoned is what is around a guest that runs summons.
type summoned struct {
	t     *testing.T
	vm    *VM
	reg   *vmstate.Registry
	asked []said
	level bool // of the IOAPIC's input
	once  bool // the guest has been in the handler since
	n     byte
	last  byte
}

// newSummoned returns a VM for the program; if it is to begin there, at its entry.
func newSummoned(t *testing.T, begins bool) (*VM, *vmstate.Registry) {
	t.Helper()
	vm, err := Create(Config{Memory: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { vm.Close() })
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	if !begins {
		return vm, reg
	}
	const nmi, vector = 2, 0x40
	mem, v := vm.Memory(), vm.vcpus[0]
	copy(mem[summonsEntry:], summons.start)
	copy(mem[summonsInterrupt:], summons.interrupt)
	copy(mem[summonsNMI:], summons.nmi)
	binary.LittleEndian.PutUint32(mem[4*nmi:], summonsNMI)
	binary.LittleEndian.PutUint32(mem[4*vector:], summonsInterrupt)
	s, err := v.Sregs()
	s.CS.Base, s.CS.Selector = 0, 0
	s.ES.Base, s.FS.Base = 0xfec00000, 0xfee00000
	if err := errors.Join(err, v.SetSregs(s), v.SetRegs(Regs{RIP: summonsEntry, RSP: 0x6000, RFLAGS: 2})); err != nil {
		t.Fatal(err)
	}
	return vm, reg
}

// said is an access to the port: a number that the guest says, or one that it asks for.
type said struct {
	asks   bool
	number byte
}

// check fails unless the guest has done all of its own in order, and each handler all of its own in one
// go, as often as it was called at least. It reports whether one was called again.
func (s *summoned) check() (again bool) {
	s.t.Helper()
	var own []byte
	calls := map[byte]int{}
	for list := s.asked; len(list) > 0; {
		first := list[0]
		switch {
		case !first.asks && first.number < inInterrupt:
			own = append(own, first.number)
			list = list[1:]
		case len(list) >= 3 && !first.asks && list[1].asks && list[2] == said{false, list[1].number}:
			calls[first.number]++
			list = list[3:]
		default:
			s.t.Fatalf("from %v on: %v", list, s.asked)
		}
	}
	if want := []byte{wantsInterrupts, wantsInterrupts, says, wantsNMIs, wantsToStand, wantsItsEnd}; !slices.Equal(own, want) {
		s.t.Errorf("the guest has said %v by itself, want %v: %v", own, want, s.asked)
	}
	const interrupts, nmis = 4, 3
	if calls[inInterrupt] < interrupts || calls[inNMI] < nmis {
		s.t.Errorf("the handlers were called %v: %v", calls, s.asked)
	}
	return calls[inInterrupt] > interrupts || calls[inNMI] > nmis
}

// whole runs the guest to its end. move is called after every so many accesses, and when the guest
// stands.
func (s *summoned) whole(every int, move func()) {
	s.t.Helper()
	for n := 0; s.last != wantsItsEnd && len(s.asked) < 100; {
		s.run(func() bool { n++; return n%every == 0 })
		if s.last == wantsToStand {
			s.last = 0
			s.stand()
			move()
			if err := s.nmi(); err != nil {
				s.t.Fatal(err)
			}
		}
		move()
	}
}

// repeats reports whether this KVM calls a handler again by itself, of a guest that nobody saves or
// loads: a software KVM does, once in some hundred guests, where a signal ends KVM_RUN as it is called.
func repeats(t *testing.T) bool {
	t.Helper()
	stop, done := make(chan struct{}), make(chan struct{})
	defer func() { close(stop); <-done }()
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Microsecond):
			}
			threads, _ := os.ReadDir("/proc/self/task")
			for _, thread := range threads {
				n, _ := strconv.Atoi(thread.Name())
				unix.Tgkill(os.Getpid(), n, unix.SIGURG) // which Go's runtime expects at any time
			}
		}
	}()
	for n := range 3000 {
		s := &summoned{t: t}
		s.vm, s.reg = newSummoned(t, true)
		s.whole(never, func() {})
		again := s.check()
		if err := s.vm.Close(); err != nil {
			t.Fatal(err)
		}
		if again {
			t.Logf("guest %d that was not moved: a handler was called again", n+1)
			return true
		}
	}
	return false
}

var errSummoned = errors.New("after an access")

// run runs the vCPU up to the end of an access, after which stop says so.
func (s *summoned) run(stop func() bool) {
	s.t.Helper()
	v := s.vm.vcpus[0]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := v.Run(ctx, v.Dispatch(Handler{IO: func(x *IO) error {
		if x.In {
			s.n++
			x.Data[0] = 0x80 + s.n
		}
		s.asked = append(s.asked, said{x.In, x.Data[0]})
		if !x.In {
			s.last = x.Data[0]
			if err := s.bring(x.Data[0]); err != nil {
				return err
			}
		}
		if s.last == wantsToStand || s.last == wantsItsEnd || stop() {
			return errSummoned
		}
		return nil
	}}))
	if !errors.Is(err, errSummoned) {
		s.t.Fatalf("after %v: %v", s.asked, err)
	}
}

// bring brings about what the guest's number stands for.
func (s *summoned) bring(number byte) error {
	switch {
	case number == wantsInterrupts:
		s.level, s.once = true, false
		return s.vm.SetIRQ(summonsInput, true)
	case number == inInterrupt && s.once:
		s.level = false
		return s.vm.SetIRQ(summonsInput, false)
	case number == inInterrupt:
		s.once = true
	case number == wantsNMIs:
		s.once = false
		return s.nmi()
	case number == inNMI && !s.once:
		s.once = true
		return s.nmi()
	}
	return nil
}

func (s *summoned) nmi() error {
	const nmi = 0xae9a // KVM_NMI
	_, err := ioctlValue(s.vm.vcpus[0].fd, "KVM_NMI", nmi, 0)
	return err
}

// stand runs the vCPU until it halts.
func (s *summoned) stand() {
	s.t.Helper()
	v := s.vm.vcpus[0]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx, v.Dispatch(Handler{})) }()
	for halted := false; !halted; {
		if ctx.Err() != nil {
			s.t.Fatalf("after %v the guest does not stand; Run: %v", s.asked, <-ended)
		}
		var mp gokvm.MPState
		err := s.vm.Pause(ctx)
		if err == nil {
			err = v.with(func(fd int) error {
				_, err := ioctl(fd, "KVM_GET_MP_STATE", kvmGetMPState, unsafe.Pointer(&mp))
				return err
			})
		}
		if halted = mp.State == gokvm.MPStateHalted; halted {
			cancel()
		}
		if err = errors.Join(err, s.vm.Resume(context.Background())); err != nil {
			s.t.Fatalf("%v; Run: %v", err, <-ended)
		}
		time.Sleep(time.Millisecond) // let it get there
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		s.t.Fatalf("a vCPU that stands: %v", err)
	}
}

// move takes the guest to another VM, where its device's line is as it was.
func (s *summoned) move(vm *VM, reg *vmstate.Registry) {
	s.t.Helper()
	state := encode(s.t, s.reg)
	want := wholeOf(s.t, s.vm)
	copy(vm.Memory(), s.vm.Memory())
	reg.NewSession()
	if err := errors.Join(reg.LoadDevices(state, nil), reg.Commit(), vm.SetIRQ(summonsInput, s.level)); err != nil {
		s.t.Fatal(err)
	}
	if list := wholeOf(s.t, vm).differs(want); len(list) > 0 {
		s.t.Errorf("moved after %v: %q", s.asked, list)
	}
	s.vm, s.reg = vm, reg
}

// never is a number of accesses that there are not.
const never = 1 << 30

// A guest that is called away from what it does, by an interrupt of a line that stays up, an NMI within
// another's handler, or an NMI when it stands still for good, is moved after each access to a port
// in all of that: no call is lost, none is repeated unless the KVM does that to a guest that is not
// moved, and each handler does its work in one go.
func TestAGuestIsMovedInTheMidstOfItsHandlers(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	const each = 1
	for _, every := range []int{never, each, 2, 3} {
		s := &summoned{t: t}
		s.vm, s.reg = newSummoned(t, true)
		spare, reg := newSummoned(t, false)
		moves := 0
		s.whole(every, func() {
			if every == never {
				return
			}
			vm, from := s.vm, s.reg
			s.move(spare, reg)
			spare, reg = vm, from
			moves++
		})
		if s.check() && !repeats(t) {
			t.Errorf("moved after every %d accesses: a handler was called again: %v", every, s.asked)
		}
		if every == each && moves < len(s.asked) {
			t.Errorf("moved %d times in %d accesses", moves, len(s.asked))
		}
	}
}
