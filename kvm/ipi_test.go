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

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

var callingPauses = flag.Int("calling-pauses", 16, "`number` of pauses of a guest whose vCPUs interrupt each other")

// Where the program of calling has its numbers. Each vCPU has a block: how many interrupts
// it has had, and how many it has sent, in 32 bits each, and whether it is ready.
const (
	callingBlock  = 0x500 // of vCPU 0; that of vCPU 1 is callingNext behind it
	callingNext   = 0x20
	callingSent   = 4     // in a block
	callingEnough = 0x540 // 8 bits: not 0 when it is to end
	callingData   = 0x20000
	callingSize   = 64 << 10
	callingVector = 0x40
	callingAPIC   = 0xfee00000
)

// calling returns a program for a vCPU in real mode: a round sends the other vCPU an interrupt,
// waits until it has counted it, and adds a number to a word of 64 KiB. When it is to end
// it writes a port, and goes on to count. BX is its block, SI the other's, EBP the other's
// APIC ID in the place where an interrupt command has it; FS shows the local APIC. (Intel
// SDM volume 3, 11.6.1.)
func calling() (code, handler []byte) {
	code = []byte{0x64, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00, 0x00, // MOV DWORD FS:[0xf0], 0x1ff: the APIC is on
		0xc6, 0x47, 0x08, 0x01, 0x80, 0x7c, 0x08, 0x00, 0x74, 0xfa, // MOV BYTE [BX+8], 1; CMP BYTE [SI+8], 0; JE, until both are
		0xfb} // STI
	loop := len(code)
	code = append(code,
		0x66, 0xff, 0x47, 0x04, // INC DWORD [BX+4]
		0x64, 0x66, 0x89, 0x2e, 0x10, 0x03, // MOV FS:[0x310], EBP
		0x64, 0x66, 0xc7, 0x06, 0x00, 0x03, callingVector, 0x40, 0x00, 0x00) // MOV DWORD FS:[0x300], 0x4040
	wait := len(code)
	code = append(code, 0x66, 0x8b, 0x14, 0x66, 0x3b, 0x57, 0x04) // MOV EDX, [SI]; CMP EDX, [BX+4]
	code = append(code, 0x75, byte(wait-len(code)-2))             // JNE wait
	code = append(code,
		0x66, 0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00, // IMUL EAX, 1664525
		0x66, 0x05, 0x5f, 0xf3, 0x6e, 0x3c, // ADD EAX, 1013904223
		0x89, 0xc7, 0x83, 0xe7, 0xfc, // DI is AX, aligned
		0x26, 0x66, 0x01, 0x05, // ADD ES:[DI], EAX
		0x80, 0x3e, 0x40, 0x05, 0x00) // CMP BYTE [0x540], 0
	code = append(code, 0x74, byte(loop-len(code)-2), // JE loop
		0xe6, 0x99, 0xeb, 0xfe) // OUT 0x99, AL; JMP .
	handler = []byte{
		0x66, 0xff, 0x07, // INC DWORD [BX]
		0x64, 0x66, 0xc7, 0x06, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, 0xcf, // MOV DWORD FS:[0xb0], 0; IRET
	}
	return code, handler
}

// callers is a VM with that program on two vCPUs.
type callers struct {
	*kvm.VM
	t   *testing.T
	mem []byte
	reg vmstate.Registry
}

func newCallers(t *testing.T) *callers {
	t.Helper()
	require.Usable(t, require.KVM, kvm.Probe)
	const entry, handlerAt, stack = 0x1000, 0x2000, 0x6000
	vm, err := kvm.Create(kvm.Config{Memory: 1 << 20, VCPUs: 2})
	must(t, err)
	t.Cleanup(func() { must(t, vm.Close()) })
	c := &callers{VM: vm, t: t, mem: vm.Memory()}
	code, handler := calling()
	copy(c.mem[entry:], code)
	copy(c.mem[handlerAt:], handler)
	binary.LittleEndian.PutUint32(c.mem[4*callingVector:], handlerAt)
	for i, v := range vm.VCPUs() {
		s, err := v.Sregs()
		must(t, err)
		s.CS.Base, s.CS.Selector = 0, 0
		s.ES.Base = callingData + uint64(i)*callingSize
		s.ES.Selector = uint16(s.ES.Base >> 4)
		s.FS.Base, s.FS.Limit = callingAPIC, 0xffff
		must(t, v.SetSregs(s))
		must(t, v.SetRegs(kvm.Regs{
			RIP: entry, RSP: stack - uint64(i)<<12, RFLAGS: 2, RBP: uint64(1-i) << 24,
			RBX: callingBlock + uint64(i)*callingNext, RSI: callingBlock + uint64(1-i)*callingNext,
		}))
		must(t, v.SetRunnable())
	}
	must(t, vm.Register(&c.reg))
	return c
}

// word returns one of a vCPU's numbers, which may run.
func (c *callers) word(vcpu, at int) uint32 {
	return atomic.LoadUint32((*uint32)(unsafe.Pointer(&c.mem[callingBlock+vcpu*callingNext+at])))
}

func (c *callers) save() []byte {
	c.t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	must(c.t, c.reg.SaveDevices(w))
	vmstate.PutEOF(w)
	must(c.t, w.Flush())
	return b.Bytes()
}

func (c *callers) load(state []byte) {
	c.t.Helper()
	c.reg.NewSession()
	must(c.t, c.reg.LoadDevices(state, nil))
	must(c.t, c.reg.Commit())
}

// check compares what the paused guest has done with what it should have.
func (c *callers) check() {
	c.t.Helper()
	for i := range 2 {
		sent, had := c.word(i, callingSent), c.word(1-i, 0)
		if sent != had && sent != had+1 {
			c.t.Fatalf("vCPU %d has sent %d interrupts, of which the other has had %d", i, sent, had)
		}
		regs, err := c.VCPUs()[i].Regs()
		must(c.t, err)
		want := make([]byte, callingSize)
		eax := uint32(0)
		add := func() {
			eax = eax*1664525 + 1013904223
			word := want[eax&0xfffc:]
			binary.LittleEndian.PutUint32(word, binary.LittleEndian.Uint32(word)+eax)
		}
		for range max(sent, 1) - 1 {
			add()
		}
		// Of the last round it may have done all, or not all.
		got := c.mem[callingData+i*callingSize:][:callingSize]
		if !bytes.Equal(got, want) {
			if add(); !bytes.Equal(got, want) {
				c.t.Fatalf("vCPU %d has computed something else in %d rounds (at %#x)", i, sent, regs.RIP)
			}
		}
	}
}

// stands fails, with where the vCPUs are.
func (c *callers) stands() {
	c.t.Helper()
	must(c.t, c.Pause(c.t.Context()))
	for i, v := range c.VCPUs() {
		r, err := v.Regs()
		c.t.Logf("vCPU %d: %+v (%v), has sent %d, had %d", i, r, err, c.word(i, callingSent), c.word(i, 0))
	}
	c.check()
	c.t.Fatal("the guest stands still")
}

// Two vCPUs that interrupt each other all the time are paused, saved, loaded where they
// are or where they were some pauses ago, and resumed, again and again: no interrupt is
// lost on its way from one to the other, and none comes twice.
func TestVCPUsThatInterruptEachOtherArePausedAnywhere(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	c := newCallers(t)
	must(t, c.StartDirtyLog())
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(runtime.NumCPU() + 2))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(*callingPauses)*100*time.Millisecond)
	defer cancel()
	ended, done := make(chan error, 2), make(chan int, 2)
	for i, v := range c.VCPUs() {
		go func() {
			ended <- v.Run(ctx, v.Dispatch(kvm.Handler{IO: func(io *kvm.IO) error {
				done <- i
				return nil
			}}))
		}()
	}
	defer func() {
		cancel()
		for range 2 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}
	}()
	var image, state []byte
	loads, backs, last := 0, 0, uint32(0)
	for n := 1; n <= *callingPauses; n++ {
		for c.word(0, callingSent) == last { // each pause comes after a round
			if ctx.Err() != nil {
				c.stands()
			}
			time.Sleep(20 * time.Microsecond)
		}
		must(t, c.Pause(ctx))
		switch {
		case n%8 == 7:
			copy(c.mem, image)
			c.MarkDirty(0, uint64(len(image)))
			c.load(state)
			backs++
		case n%2 == 0:
			state = c.save()
			image = append(image[:0], c.mem...)
			c.load(state)
			loads++
		}
		c.check()
		last = c.word(0, callingSent)
		if n == *callingPauses {
			c.mem[callingEnough] = 1
		}
		must(t, c.ReadDirty(kvm.RAMBlock, make([]uint64, len(c.mem)/kvm.PageSize/64)))
		must(t, c.Resume(ctx))
	}
	for range 2 {
		select {
		case <-done:
		case <-ctx.Done():
			c.stands()
		}
	}
	must(t, c.Pause(t.Context()))
	c.check()
	for i := range 2 {
		if sent, had := c.word(i, callingSent), c.word(1-i, 0); sent != had {
			t.Errorf("vCPU %d has sent %d interrupts, of which the other has had %d", i, sent, had)
		}
	}
	must(t, c.Resume(t.Context()))
	t.Logf("%d pauses, %d loads, %d of them of an earlier state, %d and %d rounds", *callingPauses, loads+backs, backs, c.word(0, callingSent), c.word(1, callingSent))
}
