// Package acpi makes the tables that tell a guest what a small PC of package device
// consists of: its CPUs, interrupt controllers, power block, and the PCI bus with
// its interrupts. They are enough for an operating system to use more than one CPU,
// and to switch the machine off.
package acpi
