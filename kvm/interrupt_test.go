//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

var interruptedPauses = flag.Int("interrupted-pauses", 50, "`number` of pauses of a guest whose timer interrupts it")

// Where the program of interrupted has its numbers.
const (
	interruptTicks  = 0x500 // 32 bits
	interruptRounds = 0x508 // 32 bits
	interruptEnough = 0x50c // 8 bits: not 0 when it is to end
	interruptData   = 0x20000
)

// interrupted returns a program for a vCPU in real mode: it has the timer interrupt it a
// thousand times a second, whose handler counts, and computes rounds, each of which adds a
// number to a word of 64 KiB. When it is to end it writes a port and halts.
func interrupted() (code, handler []byte) {
	code = []byte{
		0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x08, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21, // interrupts from 8 on
		0xb0, 0xfe, 0xe6, 0x21, // but the timer's none
		0xb0, 0x34, 0xe6, 0x43, 0xb0, 0xa9, 0xe6, 0x40, 0xb0, 0x04, 0xe6, 0x40, // of which 1193 ticks are one
		0x66, 0x31, 0xc0, 0x66, 0x31, 0xc9, 0xfb, // EAX and ECX are 0; STI
	}
	loop := len(code)
	code = append(code,
		0x66, 0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00, // IMUL EAX, 1664525
		0x66, 0x05, 0x5f, 0xf3, 0x6e, 0x3c, // ADD EAX, 1013904223
		0x89, 0xc7, 0x83, 0xe7, 0xfc, // DI is AX, aligned
		0x26, 0x66, 0x01, 0x05, // ADD ES:[DI], EAX
		0x66, 0x41, 0x66, 0x89, 0x0e, 0x08, 0x05, // INC ECX; MOV [0x508], ECX
		0x80, 0x3e, 0x0c, 0x05, 0x00) // CMP BYTE [0x50c], 0
	code = append(code, 0x74, byte(loop-len(code)-2), // JE loop
		0xfa, 0xe6, 0x99, 0xf4) // CLI; OUT 0x99, AL; HLT
	handler = []byte{
		0x66, 0x50, 0x66, 0xff, 0x06, 0x00, 0x05, // PUSH EAX; INC DWORD [0x500]
		0xb0, 0x20, 0xe6, 0x20, 0x66, 0x58, 0xcf, // the end of the interrupt; POP EAX; IRET
	}
	return code, handler
}

// A guest whose timer interrupts it all the time is paused, saved, loaded where it is and
// resumed, again and again, wherever it happens to be: between an interrupt and its
// handler, in the handler, in the middle of a port access. It computes what it would have.
func TestAGuestThatIsInterruptedIsPausedAnywhere(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	const entry, handlerAt = 0x1000, 0x7000
	vm, err := kvm.Create(kvm.Config{Memory: 1 << 20})
	must(t, err)
	defer vm.Close()
	mem := vm.Memory()
	code, handler := interrupted()
	copy(mem[entry:], code)
	copy(mem[handlerAt:], handler)
	binary.LittleEndian.PutUint32(mem[4*8:], handlerAt) // the vector of the timer
	v := vm.VCPUs()[0]
	s, err := v.Sregs()
	must(t, err)
	s.CS.Base, s.CS.Selector = 0, 0
	s.ES.Base, s.ES.Selector = interruptData, interruptData>>4
	must(t, v.SetSregs(s))
	must(t, v.SetRegs(kvm.Regs{RIP: entry, RSP: 0x6000, RFLAGS: 2}))
	must(t, vm.StartDirtyLog())
	var reg vmstate.Registry
	must(t, vm.Register(&reg))

	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 1))
	done := errors.New("done")
	ended := make(chan error, 1)
	go func() {
		ended <- v.Run(context.Background(), v.Dispatch(kvm.Handler{IO: func(io *kvm.IO) error {
			if io.Port == 0x99 {
				return done
			}
			return nil
		}}))
	}()
	pauses, rounds := 0, uint32(0)
	for running := true; running; {
		select {
		case err := <-ended:
			if !errors.Is(err, done) {
				t.Fatal(err)
			}
			running = false
			continue
		default:
		}
		// Each pause comes after a round at least: the guest comes to its end.
		n := atomic.LoadUint32((*uint32)(unsafe.Pointer(&mem[interruptRounds])))
		if n == rounds && pauses > 0 {
			time.Sleep(20 * time.Microsecond)
			continue
		}
		rounds = n
		pauses++
		must(t, vm.Pause(t.Context()))
		if pauses%4 == 0 {
			var b bytes.Buffer
			w := qemufile.NewWriter(&b)
			must(t, reg.SaveDevices(w))
			vmstate.PutEOF(w)
			must(t, w.Flush())
			reg.NewSession()
			must(t, reg.LoadDevices(b.Bytes(), nil))
			must(t, reg.Commit())
		}
		must(t, vm.ReadDirty(kvm.RAMBlock, make([]uint64, 1<<20/kvm.PageSize/64)))
		if pauses >= *interruptedPauses && binary.LittleEndian.Uint32(mem[interruptTicks:]) >= 3 {
			mem[interruptEnough] = 1
		}
		must(t, vm.Resume(t.Context()))
	}
	rounds = binary.LittleEndian.Uint32(mem[interruptRounds:])
	want := make([]byte, 64<<10)
	eax := uint32(0)
	for range rounds {
		eax = eax*1664525 + 1013904223
		word := want[eax&0xfffc:]
		binary.LittleEndian.PutUint32(word, binary.LittleEndian.Uint32(word)+eax)
	}
	if !bytes.Equal(mem[interruptData:][:64<<10], want) {
		t.Error("the guest has computed something else")
	}
	t.Logf("%d pauses, %d interrupts, %d rounds", pauses, binary.LittleEndian.Uint32(mem[interruptTicks:]), rounds)
}
