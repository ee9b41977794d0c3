package pc

import (
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/kvm/internal/board"
)

// Limits of a PCI bus and of where its devices may be.
const (
	slots       = 32
	portSlots   = 0x6100
	portsOfSlot = 0x100
	lowestPorts = 0x1000 // below are the machine's own
)

// interrupts are what devices may have, in the order in which they get them: first those that
// a PC's old interrupt controllers have, which no other device of the machine uses.
var interrupts = []uint8{9, 10, 5, 7, 3, 6, 14, 15, 12, 16, 17, 18, 19, 20, 21, 22, 23}

// place gives every device a place of its own. What is 0 in wanted is chosen among what no
// other device wants.
func place(wanted []Place) ([]Place, error) {
	slot, ports, used := [slots]bool{0: true}, map[uint16]bool{}, map[uint8]bool{} // the bridge is in slot 0
	list := slices.Clone(wanted)
	for i := range list {
		p := &list[i]
		switch {
		case p.Slot >= slots || p.Slot == 0 && (p.Ports != 0 || p.Interrupt != 0):
			return nil, fmt.Errorf("pc: a device at %+v: want a slot from 1 to %d", *p, slots-1)
		case p.Slot == 0:
			continue
		case slot[p.Slot]:
			return nil, fmt.Errorf("pc: two devices in slot %d", p.Slot)
		case p.Interrupt != 0 && (!slices.Contains(interrupts, p.Interrupt) || used[p.Interrupt]):
			return nil, fmt.Errorf("pc: slot %d cannot have interrupt %d: another device has it, or none may", p.Slot, p.Interrupt)
		}
		if p.Ports == 0 {
			p.Ports = portsOf(p.Slot)
		}
		if p.Ports%portsOfSlot != 0 || p.Ports < lowestPorts || p.Ports == board.PortControl || ports[p.Ports] {
			return nil, fmt.Errorf("pc: slot %d cannot have the ports from %#x on", p.Slot, p.Ports)
		}
		slot[p.Slot], ports[p.Ports] = true, true
		if p.Interrupt != 0 {
			used[p.Interrupt] = true
		}
	}
	for i := range list {
		p := &list[i]
		for n := uint8(1); p.Slot == 0 && n < slots; n++ {
			if !slot[n] && !ports[portsOf(n)] {
				p.Slot, p.Ports = n, portsOf(n)
				slot[n] = true
			}
		}
		for _, n := range interrupts {
			if p.Interrupt == 0 && !used[n] {
				p.Interrupt, used[n] = n, true
			}
		}
		if p.Slot == 0 || p.Interrupt == 0 {
			return nil, fmt.Errorf("pc: %d devices, more than there are slots or interrupts for", len(list))
		}
	}
	return list, nil
}

// portsOf returns where the ports of a slot's device begin, if its Place does not say it.
func portsOf(slot uint8) uint16 { return portSlots + portsOfSlot*uint16(slot) }
