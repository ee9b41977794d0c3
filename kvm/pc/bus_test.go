//go:build linux && amd64

package pc

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/internal/board"
	"github.com/gocolo/lockstep/kvm/internal/device"
)

func newTestBus() *bus {
	b := &bus{pci: device.NewPCI()}
	b.windows = []window{{board.PortReset, 1, resetPort{}}, {portKeyboard, 16, keyboard{}}}
	return b
}

func TestEachElementOfARepeatedAccessIsItsOwn(t *testing.T) {
	b := newTestBus()
	var wrote []string
	n := byte(0)
	b.other = func(port uint16, in bool, p []byte) (bool, error) {
		if in {
			p[0], p[1] = n, n+1
			n += 2
		} else {
			wrote = append(wrote, fmt.Sprintf("%x", p))
		}
		return port == 0x300, nil
	}
	if err := b.io(&kvm.IO{Port: 0x300, Size: 2, Count: 3, Data: []byte{1, 2, 3, 4, 5, 6}}); err != nil || fmt.Sprint(wrote) != "[0102 0304 0506]" {
		t.Error(wrote, err)
	}
	in := make([]byte, 6)
	if err := b.io(&kvm.IO{In: true, Port: 0x300, Size: 2, Count: 3, Data: in}); err != nil || !bytes.Equal(in, []byte{0, 1, 2, 3, 4, 5}) {
		t.Error(in, err)
	}
}

func TestWhatNobodyHasReadsAsAllOnes(t *testing.T) {
	b := newTestBus()
	b.other = func(port uint16, in bool, p []byte) (bool, error) { return port == 0x3c0, nil }
	for port, unknown := range map[uint16]uint64{0x400: 2, 0x3c0: 0, 0x500: 2, 0xffff: 2} {
		b.unknownPorts.Store(0)
		p := []byte{1, 2, 3, 4}
		if err := b.io(&kvm.IO{Port: port, Size: 4, Count: 1, Data: p}); err != nil {
			t.Errorf("port %#x: %v", port, err)
		}
		if err := b.io(&kvm.IO{In: true, Port: port, Size: 4, Count: 1, Data: p}); err != nil || !bytes.Equal(p, []byte{0xff, 0xff, 0xff, 0xff}) {
			t.Errorf("port %#x: %x, %v", port, p, err)
		}
		if n := b.unknownPorts.Load(); n != unknown {
			t.Errorf("port %#x: %d counted, want %d", port, n, unknown)
		}
	}
	p := make([]byte, 8)
	if err := b.mmio(&kvm.MMIO{Addr: 0xd0000000, Data: p}); err != nil || p[7] != 0xff {
		t.Error(p, err)
	}
	if err := b.mmio(&kvm.MMIO{Write: true, Addr: 0xd0000000, Data: p}); err != nil || b.unknownMemory.Load() != 2 {
		t.Error(b.unknownMemory.Load(), err)
	}
}

func TestADeviceOfTheHostsThatFailsEndsTheRun(t *testing.T) {
	b := newTestBus()
	broken := errors.New("broken")
	b.other = func(uint16, bool, []byte) (bool, error) { return false, broken }
	if err := b.io(&kvm.IO{Port: 0x300, Size: 1, Count: 1, Data: []byte{0}}); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestAGuestResetsItselfInTwoWays(t *testing.T) {
	b := newTestBus()
	out := func(port uint16, v byte) error {
		return b.io(&kvm.IO{Port: port, Size: 1, Count: 1, Data: []byte{v}})
	}
	for _, ok := range []error{out(board.PortReset, 2), out(portKeyboard+keyboardCommand, 0x20), out(portKeyboard, 0xfe)} {
		if ok != nil {
			t.Error(ok)
		}
	}
	for _, err := range []error{out(board.PortReset, 6), out(board.PortReset, 0xe), out(portKeyboard+keyboardCommand, keyboardReset)} {
		if !errors.Is(err, ErrReset) {
			t.Error(err)
		}
	}
	p := []byte{0}
	if b.io(&kvm.IO{In: true, Port: 0x64, Size: 1, Count: 1, Data: p}); p[0]&2 != 0 {
		t.Error("the keyboard controller is busy for ever")
	}
}

func TestAPortAccessAllocatesNothing(t *testing.T) {
	b := newTestBus()
	b.other = func(port uint16, in bool, p []byte) (bool, error) { return port == 0x300, nil }
	p := make([]byte, 4)
	for _, x := range []kvm.IO{
		{In: true, Port: 0x64, Size: 1, Count: 4, Data: p},
		{Port: 0x300, Size: 4, Count: 1, Data: p},
		{In: true, Port: 0x555, Size: 4, Count: 1, Data: p},
	} {
		if n := testing.AllocsPerRun(1000, func() { b.io(&x) }); n > 0 {
			t.Errorf("port %#x: %v allocations", x.Port, n)
		}
	}
}
