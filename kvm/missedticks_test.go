//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/gocolo/lockstep/internal/require"
)

// ticking is a guest that counts the interrupts of its timer, 1,000 in a second.
type ticking struct {
	*VM
	t    *testing.T
	must func(n int, err error) int
}

const ticksAt = 0x500

func newTicking(t *testing.T) *ticking {
	t.Helper()
	require.Usable(t, require.KVM, Probe)
	must := musts(t)
	vm, err := Create(Config{Memory: 16 * PageSize})
	must(0, err)
	mem := vm.Memory()
	var code []byte
	for _, o := range [][2]byte{
		{0x20, 0x11}, {0x21, 8}, {0x21, 4}, {0x21, 1}, {0x21, 0xfe}, // the first PIC has its timer interrupt by vector 8
		{0x43, 0x34}, {0x40, 1193 & 0xff}, {0x40, 1193 >> 8}, // which comes again and again
	} {
		code = append(code, 0xb0, o[1], 0xe6, o[0]) // mov al, v; out port, al
	}
	copy(mem[0x1000:], append(code, 0xfb, 0xf4, 0xeb, 0xfd)) // sti; hlt, and again
	// push ax; inc dword [ticksAt]; mov al, 0x20; out 0x20, al; pop ax; iret
	copy(mem[0x2000:], []byte{0x50, 0x66, 0xff, 0x06, ticksAt & 0xff, ticksAt >> 8, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf})
	binary.LittleEndian.PutUint32(mem[8*4:], 0x2000)
	v := vm.VCPUs()[0]
	s, err1 := v.Sregs()
	r, err2 := v.Regs()
	s.CS.Base, s.CS.Selector, r.RIP, r.RFLAGS, r.RSP = 0, 0, 0x1000, 2, 0x8000
	must(0, errors.Join(err1, err2, v.SetSregs(s), v.SetRegs(r)))

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- v.Run(ctx, v.Dispatch(Handler{})) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		must(0, vm.Close())
	})
	return &ticking{vm, t, must}
}

func (k *ticking) ticks() int {
	return int(atomic.LoadUint32((*uint32)(unsafe.Pointer(&k.Memory()[ticksAt]))))
}

// goesOn resumes the guest, and fails if in the time after that it is interrupted more often than its timer does.
func (k *ticking) goesOn(after string) {
	k.t.Helper()
	const each = 1193 * time.Second / 1193182
	const more = 100 // one that waited in the PIC, and what the host's clocks differ by
	before, begun := k.ticks(), time.Now()
	k.must(0, k.Resume(context.Background()))
	for past := time.Duration(0); past < 500*time.Millisecond; {
		n := k.ticks() - before
		if past = time.Since(begun); n > int(past/each)+more {
			k.t.Fatalf("%s the guest is interrupted %d times in %v", after, n, past)
		}
		time.Sleep(time.Millisecond)
	}
}

// A guest is not kept busy, after a long pause, by the interrupts that its timer would have had in it: where it
// is resumed, and where it was given a state and then waited.
func TestAGuestIsNotInterruptedForTheTimeOfALongPause(t *testing.T) {
	k := newTicking(t)
	for k.ticks() < 100 {
		time.Sleep(time.Millisecond)
	}
	k.must(0, k.Pause(context.Background()))
	time.Sleep(longPause)
	k.goesOn("after a pause")

	k.must(0, k.Pause(context.Background()))
	k.must(0, k.chips.Save(k.fd))
	k.must(0, pitDevice{k.VM}.PostLoad(1))
	time.Sleep(longPause)
	k.goesOn("after it was given a state")

	before := k.ticks()
	for k.ticks() < before+100 { // and it still ticks
		time.Sleep(time.Millisecond)
	}
}
