// Package device has the devices of a small PC: a serial port, PCI configuration
// space, legacy virtio disks and network cards, CMOS and the ACPI power block.
//
// A device is a set of ports (Ports), the guest's memory (Memory) and an interrupt
// line (Line). Guests are not trusted: a driver's rings, descriptors and registers
// are read once, checked, and then used; a ring that breaks the rules is left
// alone until the driver resets the device.
//
// # Who may touch the guest
//
// Ports are accessed by vCPUs. Whatever else a device does, on a goroutine of the
// host, it does inside a Gate: while the gate is closed, no device writes memory or
// moves a line. A host that pauses a guest stops the vCPUs, then closes the Gate.
//
// # State
//
// A State is the state of a device in a stream. Save copies the state from the
// device, and Apply copies it into the device, both while the guest is paused. In
// between a vmstate.Registry may load a State, and take that back, as often as it
// likes. Every count and index is checked when it is loaded, so that Apply cannot
// fail.
package device
