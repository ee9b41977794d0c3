// Package gokvmhost protects a guest that runs in gokvm
// (github.com/bobuhiro11/gokvm/machine): it takes over a machine.Machine and gives it the
// run loop and the devices of package pc, and so all that a COLO session needs of a host,
// without a change to gokvm. A host that has no machine yet uses package pc itself.
// linux/amd64; elsewhere it compiles and everything fails with an error that wraps
// errors.ErrUnsupported.
//
// A host makes a machine (New), loads a guest (LoadLinux, with the ACPI tables that
// gokvm lacks), and attaches it:
//
//	m, err := gokvmhost.New(gokvmhost.MachineConfig{VCPUs: 2, Memory: 512 << 20})
//	err = gokvmhost.LoadLinux(m, kernel, initrd, "console=ttyS0 root=/dev/vda")
//	h, err := gokvmhost.Attach(m, gokvmhost.Config{Console: os.Stdout, Disk: disk, Uplink: uplink})
//	err = h.Register(registry)
//	go h.Run(ctx)
//	err = h.Resume(ctx)
//
// A Host is what package protect takes as a Guest: a colo.VM, a ram.DirtyLog, its memory one
// ram.Block. Frames for the guest go to ReceivePacket, input for its console to Input. On the
// secondary there is nothing to load, and no need of a machine of gokvm: Create makes a
// Host for a guest that comes from another host, or from a file.
//
// # Which parts are those of gokvm
//
// gokvm makes the VM, its vCPUs and its memory, and loads the kernel. Devices that
// the host has added to it with AddDevice answer at their ports, one access at a
// time. The run loop is that of package kvm, so that a pause completes what an exit
// has begun; and the devices of a PC that matter to a guest's state are those of package
// pc, in the places where a guest of gokvm expects them:
//
//	COM1, interrupt 4                 gokvm/serial
//	PCI configuration                 gokvm/pci
//	00:01.0 virtio NIC, interrupt 9   gokvm/virtio-net
//	00:02.0 virtio disk, interrupt 10 gokvm/virtio-blk
//	CMOS                              gokvm/cmos
//	ACPI power block, interrupt 11    gokvm/pm
//
// Each is a vmstate device of the name on the right. Package pc says
// what a pause waits for, and what becomes of the guest's clocks.
//
// # How it gets there
//
// Some fields of the machine that this package needs are not exported by gokvm. It finds
// them by name and type with package reflect; if a version of gokvm lacks one, or has it
// with another type, the error is a LayoutError, and nothing was changed. Where a
// version has methods for them (VMFd, Mem), those are used.
package gokvmhost
