//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/kvm"
)

func TestPausing1000TimesAtRandomLosesAndDoublesNothing(t *testing.T) {
	for vcpus := 1; vcpus <= 2; vcpus++ {
		m := newMachine(t, guest.Params{VCPUs: vcpus, Pages: 8, Touch: 2}, kvm.Config{})
		m.busy = 2
		m.load()
		m.start()
		for i := range 1000 {
			if i%3 > 0 {
				time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
			}
			m.pause()
			m.mu.Lock()
			n := len(m.frames[0])
			m.mu.Unlock()
			if i%50 == 0 {
				time.Sleep(time.Millisecond)
				if len(m.frames[0]) != n { // no lock: nothing may run
					t.Fatal("a frame was emitted while paused")
				}
				m.pause()
				m.resume()
			}
			m.resume()
		}
		m.mu.Lock()
		m.limit = m.last(0)
		for v := range m.frames {
			m.limit = max(m.limit, m.last(v)+1)
		}
		m.mu.Unlock()
		m.awaitLimit()
		m.halt()
		m.check()
		t.Logf("%d vCPUs: %d frames", vcpus, len(m.frames[0]))
	}
}

// code runs machine code at CPL3 on a VM of one vCPU; the ports of package guest
// are open to it.
func code(t *testing.T, program []byte) (*machine, *kvm.VCPU) {
	m := newMachine(t, guest.Params{Pages: 1}, kvm.Config{})
	m.load()
	copy(m.Memory()[guest.ProgramBase:], program)
	return m, m.VCPUs()[0]
}

// run is Run, with a limit in time for what should end by itself.
func run(t *testing.T, v *kvm.VCPU, h kvm.Handler) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return v.Run(ctx, v.Dispatch(h))
}

var errStop = errors.New("stop")

func TestRepeatedPortAccessesAreSeenElementByElement(t *testing.T) {
	const buffer = guest.RingBase
	m, v := code(t, []byte{
		0xba, 0x00, 0x06, 0, 0, // mov edx, 0x600
		0xb9, 5, 0, 0, 0, // mov ecx, 5
		0xbe, 0, 0, 0x10, 0, // mov esi, buffer
		0xf3, 0x6e, // rep outsb
		0xb9, 3, 0, 0, 0, // mov ecx, 3
		0xbf, 0, 0, 0x10, 0, // mov edi, buffer
		0xf3, 0x66, 0x6d, // rep insw
		0xba, 0x04, 0x06, 0, 0, // mov edx, 0x604
		0xb0, 0x55, // mov al, 0x55
		0xee,       // out dx, al
		0xeb, 0xfe, // jmp .
	})
	copy(m.Memory()[buffer:], "hello")
	var out bytes.Buffer
	in := byte('a')
	err := run(t, v, kvm.Handler{IO: func(x *kvm.IO) error {
		switch {
		case x.Port == 0x604:
			return errStop
		case x.In:
			for i := range x.Data {
				x.Data[i] = in
				in++
			}
		default:
			out.Write(x.Data)
		}
		if len(x.Data) != x.Size*x.Count {
			t.Errorf("%d bytes of data for %d elements of %d", len(x.Data), x.Count, x.Size)
		}
		return nil
	}})
	if !errors.Is(err, errStop) {
		t.Fatal(err)
	}
	if out.String() != "hello" || string(m.Memory()[buffer:buffer+6]) != "abcdef" {
		t.Fatalf("out %q, in %q", out.String(), m.Memory()[buffer:buffer+6])
	}
}

func TestAnExitWhoseHandlerFailedIsStillCompleted(t *testing.T) {
	m, v := code(t, []byte{
		0xba, 0x00, 0x06, 0, 0, // mov edx, 0x600
		0xec,             // in al, dx
		0x0f, 0xb6, 0xd8, // movzx ebx, al
		0xee,       // out dx, al
		0xeb, 0xf9, // jmp to in
	})
	want := true // an IN comes next
	for i := range 20 {
		err := run(t, v, kvm.Handler{IO: func(x *kvm.IO) error {
			if x.In != want {
				t.Fatalf("step %d: IN %v, want %v", i, x.In, want)
			}
			want = !want
			if x.In {
				x.Data[0] = byte(i)
			} else if x.Data[0] != byte(i-1) {
				t.Fatalf("step %d: OUT %d", i, x.Data[0])
			}
			return errStop
		}})
		if !errors.Is(err, errStop) {
			t.Fatal(err)
		}
		regs, err := v.Regs()
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 && regs.RAX&0xff != uint64(i) {
			t.Fatalf("step %d: RAX %#x: the port's value has not arrived", i, regs.RAX)
		}
	}
	_ = m
}

func TestAccessesOutsideMemoryAreMMIO(t *testing.T) {
	_, v := code(t, []byte{
		0xb8, 0, 0, 0, 0xd0, // mov eax, 0xd0000000
		0x48, 0x8b, 0x18, // mov rbx, [rax]
		0xf0, 0x48, 0xff, 0xc3, // padding that is not executed
	})
	var addr uint64
	_ = run(t, v, kvm.Handler{MMIO: func(x *kvm.MMIO) error {
		if x.Write || len(x.Data) != 8 {
			t.Errorf("write %v of %d bytes", x.Write, len(x.Data))
		}
		addr = x.Addr
		copy(x.Data, "\x11\x22\x33\x44\x55\x66\x77\x88")
		return errStop
	}})
	if addr != 0xd0000000 {
		t.Fatalf("MMIO at %#x", addr)
	}
	regs, err := v.Regs()
	if err != nil {
		t.Fatal(err)
	}
	if regs.RBX != 0x8877665544332211 {
		t.Fatalf("RBX %#x", regs.RBX)
	}
}

func TestExitsThatNobodyHandlesEndRun(t *testing.T) {
	triple := []byte{0x0f, 0x0b} // ud2, without an interrupt table
	_, v := code(t, triple)
	var exit *kvm.ExitError
	if err := run(t, v, kvm.Handler{}); !errors.As(err, &exit) || exit.Reason != 8 {
		t.Errorf("triple fault: %v", err)
	}
	_, v = code(t, triple)
	if err := run(t, v, kvm.Handler{Shutdown: func() error { return errStop }}); !errors.Is(err, errStop) {
		t.Errorf("triple fault with a handler: %v", err)
	}
	_, v = code(t, []byte{0xba, 0x00, 0x06, 0, 0, 0xec, 0xeb, 0xfe}) // in al, dx
	if err := run(t, v, kvm.Handler{}); !errors.As(err, &exit) || exit.Reason != 2 {
		t.Errorf("port access: %v", err)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	_, v := code(t, []byte{0xeb, 0xfe}) // jmp .
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(5*time.Millisecond, cancel)
	if err := v.Run(ctx, v.Dispatch(kvm.Handler{})); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := v.Run(ctx, v.Dispatch(kvm.Handler{})); !errors.Is(err, context.Canceled) {
		t.Fatal("with a context that has ended:", err)
	}
}

func TestRunEndsWithItsContextWhilePaused(t *testing.T) {
	m, v := code(t, []byte{0xeb, 0xfe})
	m.pause()
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(5*time.Millisecond, cancel)
	if err := v.Run(ctx, v.Dispatch(kvm.Handler{})); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := v.Regs(); err != nil {
		t.Fatal(err)
	}
}

func TestAVMPausedBeforeItsFirstRunDoesNotRun(t *testing.T) {
	m := newMachine(t, guest.Params{Pages: 4}, kvm.Config{})
	m.load()
	m.pause()
	m.start()
	time.Sleep(5 * time.Millisecond)
	m.pause()
	m.save()
	if r, err := m.VCPUs()[0].Regs(); err != nil || r.RIP != guest.ProgramBase {
		t.Fatalf("RIP %#x, %v", r.RIP, err)
	}
	m.resume()
	m.resume()
	m.await(3)
}

func TestPauseGivesUpWithItsContextAndTheGuestGoesOn(t *testing.T) {
	m := newMachine(t, guest.Params{Pages: 4}, kvm.Config{})
	m.load()
	v := m.VCPUs()[0]
	entered, leave := make(chan struct{}), make(chan struct{})
	var once sync.Once
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	var after int
	go func() {
		ended <- v.Run(ctx, v.Dispatch(kvm.Handler{IO: func(x *kvm.IO) error {
			once.Do(func() { close(entered); <-leave })
			if after++; after > 100 {
				return errStop
			}
			return m.io(0, x)
		}}))
	}()
	<-entered
	short, cancelShort := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancelShort()
	if err := m.Pause(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("pause while a handler blocks:", err)
	}
	if err := m.Register(m.registry()); err == nil {
		t.Error("the devices were registered twice")
	}
	if _, err := v.Regs(); !errors.Is(err, kvm.ErrRunning) {
		t.Error("registers of a running vCPU:", err)
	}
	if err := v.Run(ctx, nil); !errors.Is(err, kvm.ErrRunning) {
		t.Error("a second Run:", err)
	}
	if err := m.Close(); !errors.Is(err, kvm.ErrRunning) {
		t.Error("close:", err)
	}
	close(leave)
	if err := <-ended; !errors.Is(err, errStop) {
		t.Error("the guest went on until", err)
	}
	cancel()
}

func TestDispatchAllocatesNothing(t *testing.T) {
	_, v := code(t, []byte{0xba, 0x00, 0x06, 0, 0, 0xec, 0xeb, 0xfd}) // in al, dx; jmp to it
	var n int
	var allocs float64
	handle := v.Dispatch(kvm.Handler{IO: func(x *kvm.IO) error {
		n++
		return nil
	}})
	err := v.Run(context.Background(), func(d *kvm.RunData) error {
		allocs = testing.AllocsPerRun(100, func() {
			if err := handle(d); err != nil {
				t.Error(err)
			}
		})
		return errStop
	})
	if !errors.Is(err, errStop) || allocs != 0 {
		t.Fatalf("%v allocations per exit, %v", allocs, err)
	}
}

// An instruction that KVM has to emulate, and cannot, is named. (At CPL0 a KVM without
// the hardware's help emulates all; elsewhere only what touches no memory that there
// is: x87's FNSAVE to it is one that KVM does not know. Some KVMs tell of it at CPL3 only
// where the VMM wants that.)
func TestAnInstructionThatKVMCannotEmulateIsNamed(t *testing.T) {
	fnsave := []byte{0xdd, 0x30}                                    // fnsave [rax]
	m, v := code(t, append([]byte{0xb8, 0, 0, 0, 0xd0}, fnsave...)) // mov eax, 0xd0000000: no memory there
	enabled(t, 204, 1)(m.Descriptor())                              // KVM_CAP_EXIT_ON_EMULATION_FAILURE
	err := run(t, v, kvm.Handler{IO: func(*kvm.IO) error { return errStop }, MMIO: func(*kvm.MMIO) error { return nil }})
	var exit *kvm.ExitError
	if !errors.As(err, &exit) || exit.Code != 1 {
		t.Fatalf("got %v, want an error of emulation", err)
	}
	if exit.RIP != guest.ProgramBase+5 || !bytes.HasPrefix(exit.Instruction, fnsave) {
		t.Errorf("RIP %#x, instruction % x; want %#x, % x", exit.RIP, exit.Instruction, uint64(guest.ProgramBase+5), fnsave)
	}
	if words := fmt.Sprintf("cannot emulate the instruction % x", fnsave); !strings.Contains(err.Error(), words) {
		t.Errorf("%q lacks %q", err, words)
	}
}
