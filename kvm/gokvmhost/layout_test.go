//go:build linux && amd64

package gokvmhost

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
	"unsafe"

	"github.com/bobuhiro11/gokvm/machine"
	"github.com/bobuhiro11/gokvm/pci"
	"github.com/bobuhiro11/gokvm/tap"
	"github.com/bobuhiro11/gokvm/virtio"
)

func TestThePartsOfThisGokvmAreFound(t *testing.T) {
	m := &machine.Machine{}
	p, err := partsOf(m)
	if err != nil {
		t.Fatal(err)
	}
	called := false
	handlers, err := field[portHandlers](m, "ioportHandlers")
	if err != nil {
		t.Fatal(err)
	}
	handlers[0x80][1] = func(uint64, []byte) error { called = true; return nil }
	p.handlers[0x80][1](0x80, nil)
	if !called {
		t.Error("the handlers are a copy")
	}
	vm, err := field[uintptr](m, "vmFd")
	if err != nil {
		t.Fatal(err)
	}
	*vm = 77
	if p, _ := partsOf(m); p.vm != 77 {
		t.Error("vmFd is", p.vm)
	}
}

// Structs as another gokvm might have them.
type (
	withoutMemory struct {
		vmFd uintptr
		pci  *pci.PCI
	}
	otherDescriptor struct {
		vmFd int
		mem  []byte
	}
	otherHandlers struct {
		vmFd           uintptr
		mem            []byte
		pci            *pci.PCI
		ioportHandlers map[uint16]func()
	}
	embedded struct{ otherDescriptor }
)

func TestAnotherLayoutIsAnErrorThatSaysSo(t *testing.T) {
	for _, c := range []struct {
		m    any
		want LayoutError
	}{
		{&withoutMemory{vmFd: 1, pci: nil}, LayoutError{"gokvmhost.withoutMemory", "mem", "[]uint8", ""}},
		{&otherDescriptor{vmFd: 1, mem: nil}, LayoutError{"gokvmhost.otherDescriptor", "vmFd", "uintptr", "int"}},
		{&otherHandlers{vmFd: 1, mem: nil, pci: nil, ioportHandlers: nil}, LayoutError{"gokvmhost.otherHandlers", "ioportHandlers", "[65536][2]func(uint64, []uint8) error", "map[uint16]func()"}},
		{&embedded{otherDescriptor: otherDescriptor{}}, LayoutError{"gokvmhost.embedded", "vmFd", "uintptr", ""}},
	} {
		_, err := partsOf(c.m)
		var got *LayoutError
		if !errors.As(err, &got) || *got != c.want || !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%T: %v", c.m, err)
		}
	}
	if _, err := partsOf((*machine.Machine)(nil)); err == nil {
		t.Error("nil has parts")
	}
}

// newer is a machine that exports what is needed.
type newer struct {
	pci            *pci.PCI
	ioportHandlers portHandlers
}

func (*newer) VMFd() uintptr { return 5 }
func (*newer) Mem() []byte   { return []byte{1, 2, 3} }

func TestMethodsArePreferredToPrivateFields(t *testing.T) {
	p, err := partsOf(&newer{pci: pci.New(), ioportHandlers: portHandlers{}})
	if err != nil || p.vm != 5 || len(p.memory) != 3 || p.pci == nil {
		t.Error(p.vm, p.memory, err)
	}
}

// private sets a private field, as gokvm's own code would.
func private[T any](t *testing.T, p any, name string, v T) {
	t.Helper()
	f, err := field[T](p, name)
	if err != nil {
		t.Fatal(err)
	}
	*f = v
}

func TestOnlyTheDevicesOfGokvmAreAdopted(t *testing.T) {
	nic := &virtio.Net{}
	private[io.ReadWriter](t, nic, "tap", &tap.Tap{})
	blk := &virtio.Blk{}
	bridge := pci.NewBridge()
	for name, c := range map[string]struct {
		bus  *pci.PCI
		plan []slotKind
		fail bool
	}{
		"nothing":       {pci.New(bridge), []slotKind{slotBridge, slotNIC, slotDisk}, false},
		"both":          {pci.New(bridge, nic, blk), []slotKind{slotBridge, slotNIC, slotDisk}, false},
		"disk first":    {pci.New(bridge, blk, nic), []slotKind{slotBridge, slotDisk, slotNIC}, false},
		"a disk":        {pci.New(bridge, blk), []slotKind{slotBridge, slotDisk, slotNIC}, false},
		"two disks":     {pci.New(bridge, blk, blk), nil, true},
		"two cards":     {pci.New(bridge, nic, nic), nil, true},
		"another":       {pci.New(bridge, bridge), nil, true},
		"another's tap": {pci.New(bridge, &virtio.Net{}), nil, true},
		"no bridge":     {pci.New(blk, nic), []slotKind{slotBridge, slotDisk, slotNIC}, false},
		"an empty bus":  {pci.New(), []slotKind{slotBridge, slotNIC, slotDisk}, false},
		"no bus":        {nil, nil, true},
	} {
		o, err := adopt(c.bus)
		if (err != nil) != c.fail {
			t.Error(name, err)
		}
		if err == nil && fmt.Sprint(o.plan()) != fmt.Sprint(c.plan) {
			t.Error(name, o.plan())
		}
	}
}

// On a stack that is moved, a pointer that was turned into a number is stale.
func TestTheStackStandsStillWhileItShould(t *testing.T) {
	err := undisturbed(func() error {
		var here int
		before := uintptr(unsafe.Pointer(&here))
		grow(100)
		runtime.GC() // shrinks stacks that are mostly empty
		if n := testing.AllocsPerRun(100, func() { tall(1, func() error { return nil }) }); n > 0 {
			return fmt.Errorf("tall frames are not on the stack")
		}
		if after := uintptr(unsafe.Pointer(&here)); after != before {
			return fmt.Errorf("it moved from %#x to %#x", before, after)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// The second begins while the first is at work, unless it has to wait.
func TestMachinesThatAreMadeAtOnceLeaveTheGarbageCollectorAsItWas(t *testing.T) {
	const percent = 123
	defer debug.SetGCPercent(debug.SetGCPercent(percent))
	inside, firstIsMade, second := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	first := undisturbed(func() error {
		go func() {
			second <- undisturbed(func() error {
				close(inside)
				<-firstIsMade
				return nil
			})
		}()
		select {
		case <-inside:
		case <-time.After(50 * time.Millisecond): // it waits for its turn, as it should
		}
		return nil
	})
	close(firstIsMade)
	if err := errors.Join(first, <-second); err != nil {
		t.Fatal(err)
	}
	if now := debug.SetGCPercent(percent); now != percent {
		t.Errorf("it is set to %d, and was set to %d", now, percent)
	}
}

//go:noinline
func grow(n int) (sum int) {
	var frame [1024]byte
	frame[n] = byte(n)
	if n > 0 {
		sum = grow(n - 1)
	}
	return sum + int(frame[n])
}

func TestGokvmsGoroutinesAreStoppedOnce(t *testing.T) {
	blk := &virtio.Blk{}
	private(t, blk, "kick", make(chan any))
	nic := &virtio.Net{}
	private[io.ReadWriter](t, nic, "tap", &tap.Tap{})
	private(t, nic, "txKick", make(chan any))
	private(t, nic, "rxKick", make(chan os.Signal))
	done := make(chan struct{}, 3)
	go func() { blk.IOThreadEntry(); done <- struct{}{} }()
	go func() { nic.TxThreadEntry(); done <- struct{}{} }()
	go func() { nic.RxThreadEntry(); done <- struct{}{} }()
	o, err := adopt(pci.New(pci.NewBridge(), nic, blk))
	if err != nil {
		t.Fatal(err)
	}
	o.quiet()
	for range 3 {
		<-done
	}
	o.quiet()
}
