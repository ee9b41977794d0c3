// Package pc is a small PC on KVM, for Go authors who want a whole virtual machine to
// start from, and for hosts with a VM of their own who lack its devices: vCPUs and
// memory (package kvm), a serial port, a PCI bus, virtio disks, network cards and
// randomness, clocks, the ACPI tables that describe them, and a loader for Linux. Every
// part of it can be paused,
// saved and restored, so a [Machine] can be what a COLO session protects, what migrates,
// or what is rolled back. linux/amd64; elsewhere it compiles and everything fails with
// an error that wraps errors.ErrUnsupported.
//
//	m, err := pc.Create(pc.Config{VCPUs: 2, Memory: 512 << 20, Devices: pc.Devices{
//		Console: os.Stdout,
//		Disks:   []pc.Disk{{Storage: disk}},
//		NICs:    []pc.NIC{{Uplink: uplink}},
//	}})
//	err = m.LoadLinux(kernel, initrd, "console=ttyS0 root=/dev/vda")
//	err = m.Register(registry)
//	go m.Run(ctx)
//	err = m.Resume(ctx)
//
// A Machine is what package protect takes as a Guest: a colo.VM, a ram.DirtyLog, its memory one
// ram.Block. Frames for the guest go to [Card.ReceivePacket], input for its console to Input. On
// the side that receives a guest there is nothing to load.
//
// [Attach] does the same for a kvm.VM that exists already; package gokvmhost uses it for a
// machine of gokvm.
//
// # The devices
//
//	COM1, interrupt 4              pc/serial
//	PCI configuration              pc/pci
//	CMOS clock                     pc/cmos
//	ACPI power block, interrupt 11 pc/pm
//	virtio disks                   pc/virtio-blk, an instance for each
//	virtio network cards           pc/virtio-net, an instance for each
//	virtio entropy device          pc/virtio-rng
//
// Each is a vmstate device of the name on the right; Register says of which version. They
// take nothing on trust, neither from the guest nor from the stream; they mark what they
// write in the dirty log; and they stand still while the guest is paused. A port that no
// device has reads as all ones. The virtio devices are legacy ones on bus 0: the bridge is
// in slot 0, and [Place] says where the others are.
//
// A disk can become longer while its guest runs ([Machine.DiskGrown]). Its length is state, with which a
// guest goes on wherever the Storage is at least as long.
//
// # Pausing
//
// Pause stops the vCPUs, then waits for the devices to complete what they have
// begun: a request of the disk that the storage holds back keeps it waiting, as long
// as its context allows. A long request is performed in parts of 1 MiB, and a pause waits for
// one of them; how far the request has come is in the disk's section, and the guest goes on
// there, or on the host that has taken it over, with the next part. A pause does not wait for a
// flush, which is in the section until it is answered: where that is loaded, also after a roll-back, the
// disk is flushed anew, and the guest is told of that flush alone. Requests that were not begun
// stay in the guest's rings, which are in its memory; frames that wait for the guest are in the
// card's section.
//
// The guest's clocks do not stop with it. What it has read of them does not step
// back: its TSC and kvmclock are those of package kvm, and the ACPI timer goes on
// from where it was. The clock in CMOS is the host's.
package pc
