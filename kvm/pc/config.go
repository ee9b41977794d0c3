package pc

import (
	"context"
	"io"
	"log/slog"

	"github.com/gocolo/lockstep/kvm"
)

// Config says what Create makes.
type Config struct {
	VCPUs  int    // 1 to 255; 0 means 1
	Memory uint64 // bytes: a multiple of 4096, at least 1 MiB; LoadLinux says what a kernel needs
	// DirtyRing, CatchUp, CPUID and Features are as in kvm.Config.
	DirtyRing int
	CatchUp   bool
	CPUID     func(i int) ([]kvm.CPUIDEntry, error)
	Features  []kvm.MSR

	Devices
}

// Devices lists the devices of a Machine, and what each is connected to. The zero value is a
// guest with a serial port that nobody reads, without a disk and without a network.
type Devices struct {
	// Console takes what the guest writes to its first serial port. It is called
	// from a goroutine of Run; while it blocks, the port is busy and the guest
	// goes on. Nil discards.
	Console io.Writer
	// Disks and NICs are the guest's virtio disks and network cards, in the order of
	// their instances in the stream. The two machines of a pair have the same.
	Disks []Disk
	NICs  []NIC
	// Random is the guest's virtio entropy device; without a Source there is none.
	Random Random
	// OtherPorts is called for an access to ports that no device of the Machine has;
	// known is false if nobody has them. When the guest reads (in), p is all ones and
	// the function fills it. It is called by one vCPU at a time; an error ends Run.
	// The host itself saves the state of the device behind it. Nil: no ports.
	OtherPorts func(port uint16, in bool, p []byte) (known bool, err error)
	// Log gets a record when a guest or a backend does something odd: a broken
	// ring, a failed write; what a guest can repeat is logged once a second, with how
	// often it was not ("unsaid"). Nil: nothing is logged.
	Log *slog.Logger
}

// Disk is a virtio disk of the guest.
type Disk struct {
	Storage Storage
	// Requests is how many requests of the guest are served at once, at most 64; 0
	// means 1. With more than one, the methods of Storage are called from as many
	// goroutines, and the guest has to keep apart requests that overlap, as with any disk.
	Requests int
	ID       string // the serial number that the guest reads, at most 20 bytes; empty: "lockstep"
	Place    Place
}

// NIC is a virtio network card of the guest.
type NIC struct {
	Uplink Uplink
	// VNetHdr is the length, in bytes, of the virtio-net header that each frame to and from
	// the Uplink begins with: 10, 12, 20 or 24 as VNetHdr of package proxy and VNetHdrLen
	// of package tap, or 0 for none. The first 10 bytes are looked at, what follows is zero.
	//
	// With a header the card offers the guest checksum offload, TCP segmentation over IPv4
	// and IPv6, both ways, and mergeable receive buffers. The Uplink then has to do the
	// work that the guest leaves undone; work that the Uplink leaves undone is done by the
	// card unless the guest has offered to do it. The offered features are part of the
	// state. A guest from a host without a header goes on without offloads; a guest with
	// offloads is refused by a host without a header.
	//
	// The state of a card is saved as version 2, with a header and without one. It is
	// loaded from version 1 too, which has no headers; a program that knows only that
	// refuses version 2, so that a guest moves from it to this version and not back.
	VNetHdr int
	MAC     [6]byte // its address; all zero: the guest chooses one
	Place   Place
}

// Random is a virtio entropy device of the guest.
type Random struct {
	// Source is read from a goroutine of Run, such as crypto/rand.Reader. The two machines of a
	// pair read different numbers while both run, unless their sources are the same. While it
	// blocks, or if it fails, the guest's request waits; a Pause does not.
	Source io.Reader
	Place  Place
}

// Place is where a device is on the PCI bus. The zero value takes the next slot that
// is free: the cards in their order, then the disks, then the entropy device. Slot n of
// those has the ports from 0x6100 + 0x100 n on, and the first interrupt of 9, 10, 5, 7, 3,
// 6, 14, 15, 12, 16 to 23 that no other device has; those from 16 on need a guest that
// uses ACPI. A host that adds devices in a later version gives the earlier devices a
// Place, so that they stay where existing guests expect them.
type Place struct {
	Slot      uint8  // 1 to 31
	Ports     uint16 // 256 of them, a multiple of that; 0: by the slot
	Interrupt uint8  // 3 to 23, of its own; 0: the next that is free
}

// Storage holds the contents of a guest's disk; a replication.Disk is one. Its
// methods are called from goroutines of Run, one at a time unless Disk.Requests is
// more, for whole sectors of 512 bytes, 1 MiB at most. They may block: until they return, the request of the guest is not
// complete, and Run does not return; nor is a Pause complete, except that no Pause waits for Sync.
// Between two calls for one request the guest may be
// paused, reset its disk, or be taken over by another host, which makes the second call.
type Storage interface {
	io.ReaderAt
	io.WriterAt
	// Size returns the length in bytes, of which whole sectors of 512 are used. It may grow; Machine.DiskGrown
	// tells the guest. Any goroutine may call it, and it does not wait.
	Size() int64
	// Sync returns when every write that was answered before is stable. It is called where
	// the guest asks for it, and after each write of a guest whose driver never asks. It may be
	// called, and may return, while the Machine is paused. A flush that was not answered is part
	// of the state: where that is loaded Sync is called anew.
	Sync() error
}

// Uplink is where the frames of a guest's NIC go. Buffer of package filter,
// Comparer of package compare and the types of package proxy are Uplinks.
//
// WritePacket takes a copy of an Ethernet frame of 14 to 65,535 bytes, and does not wait. With
// NIC.VNetHdr a header comes first, and the frame behind it has up to 65,557 bytes. If it
// fails it has taken nothing: the frame stays in the guest's ring and is given again when the
// channel that Room returns, always the same one, has received a value. Both are called from a
// goroutine of Run.
type Uplink interface {
	WritePacket(frame []byte) error
	Room() <-chan struct{}
}

// Composer is an Uplink that lets the card make a frame in the memory in which the frame will
// wait: the card calls ComposePacket in place of WritePacket, which saves a copy of a large
// frame. The types of package proxy, protect.Proxy and protect.NIC are Composers.
//
// ComposePacket takes a frame of n bytes, header included. It passes memory of that length, of
// any content, to compose, once at most, from the same goroutine, and before it returns. compose
// reads the guest's memory, for which it may have to wait. If it returns false there is no frame,
// and the memory may hold a part of one: the Composer takes nothing then, and returns any error.
// A type that embeds a Composer, and has a WritePacket of its own, needs a ComposePacket of its
// own too: the card would call that of the embedded Composer, and never the type's WritePacket.
type Composer interface {
	Uplink
	ComposePacket(n int, compose func(frame []byte) bool) error
}

// Source is an Uplink that brings frames for the guest as well, such as a tap: Run has
// a goroutine that calls Receive, which passes each frame to deliver and returns when
// ctx ends. If it returns before, Run ends with its error, or ErrSource if that is nil.
// A frame that deliver does not take is dropped, and counted.
type Source interface {
	Uplink
	Receive(ctx context.Context, deliver func(frame []byte) error) error
}
