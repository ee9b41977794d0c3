// Package gokvmhost is for hosts that have a machine of gokvm's
// (github.com/bobuhiro11/gokvm/machine) and want it protected: it takes over a
// machine.Machine, gives it the run loop and the devices of package pc, and so what a COLO
// session asks of a host, without a change to gokvm. Who has no machine yet is better off with package
// pc itself. linux/amd64; elsewhere it compiles and everything fails with an error that
// wraps errors.ErrUnsupported.
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
// A Host is a colo.VM, its VM's dirty log a ram.DirtyLog, its memory one ram.Block.
// Frames for the guest go to ReceivePacket, input for its console to Input. On the
// secondary there is nothing to load, and no need of gokvm's machine: Create makes a Host
// for a guest that comes from another, or from a file, whose memory nobody has touched.
//
// # What is gokvm's and what is not
//
// gokvm makes the VM, its vCPUs and its memory, and loads the kernel. Devices that
// the host has added to it with AddDevice answer at their ports, one access at a
// time. The run loop is that of package kvm, so that a pause completes what an exit
// has begun; and the devices of a PC that matter to a guest's state are those of package
// pc, where a guest of gokvm's expects them:
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
// Some of what is needed gokvm does not export. It is found by name and type with
// package reflect, and a gokvm that has it otherwise gives a LayoutError before
// anything was changed. Where a gokvm has methods for it (VMFd, Mem), those are
// used.
package gokvmhost
