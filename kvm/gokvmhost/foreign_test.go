//go:build linux && amd64

package gokvmhost

import (
	"context"
	"errors"
	"fmt"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/kvm/pc"
)

// tunnel is an uplink that would bring frames as well.
type tunnel struct{ pc.Uplink }

func (tunnel) Receive(context.Context, func([]byte) error) error { return nil }

// What a caller's Uplink can do beyond being one is the caller's to use.
func TestNothingIsReceivedFromACallersUplink(t *testing.T) {
	var uplink pc.Source = tunnel{}
	d, err := new(Host).devices(parts{}, &own{slots: []slotKind{slotBridge}}, Config{Uplink: uplink})
	if err != nil || len(d.NICs) != 1 {
		t.Fatal(d.NICs, err)
	}
	if _, ok := d.NICs[0].Uplink.(pc.Source); ok {
		t.Error("it would be run")
	}
}

// A frame is made where it waits, also where the Uplink comes with more.
func TestFramesAreMadeInTheMemoryOfACallersUplink(t *testing.T) {
	nic := proxy.NewPrimary(proxy.PrimaryConfig{VM: still{}, Deliver: func([]byte) error { return nil }})
	for _, uplink := range []pc.Uplink{nic, struct {
		pc.Composer
		tunnel
	}{Composer: nic}} {
		d, err := new(Host).devices(parts{}, &own{slots: []slotKind{slotBridge}}, Config{Uplink: uplink})
		if err != nil || len(d.NICs) != 1 {
			t.Fatal(d.NICs, err)
		}
		if _, ok := d.NICs[0].Uplink.(pc.Composer); !ok {
			t.Error("they are made elsewhere")
		}
	}
}

type still struct{}

func (still) Pause(context.Context) error  { return nil }
func (still) Resume(context.Context) error { return nil }

// A handler of gokvm's may have the port, or be there to say that nobody has it.
func TestPortsOfTheMachinesOwnDevicesAreTheirs(t *testing.T) {
	var handlers portHandlers
	broken := errors.New("broken")
	var called string
	handlers[0x300] = [2]func(uint64, []byte) error{
		func(port uint64, p []byte) error { called = fmt.Sprintf("in %#x", port); p[0] = 7; return nil },
		func(port uint64, p []byte) error { called = fmt.Sprintf("out %#x %x", port, p); return nil },
	}
	handlers[0x500][1] = func(uint64, []byte) error { return fmt.Errorf("%w: port", gokvm.ErrUnexpectedExitReason) }
	handlers[0x600][1] = func(uint64, []byte) error { return broken }
	f := foreign(&handlers)
	p := []byte{9}
	if known, err := f(0x300, false, p); !known || err != nil || called != "out 0x300 09" {
		t.Error(known, err, called)
	}
	if known, err := f(0x300, true, p); !known || err != nil || called != "in 0x300" || p[0] != 7 {
		t.Error(known, err, called, p)
	}
	if known, err := f(0x500, false, p); known || err != nil {
		t.Error("a handler for ports that nobody has:", known, err)
	}
	if known, err := f(0x500, true, p); known || err != nil {
		t.Error("no handler:", known, err)
	}
	if known, err := f(0x600, false, p); !known || !errors.Is(err, broken) {
		t.Error(known, err)
	}
}
