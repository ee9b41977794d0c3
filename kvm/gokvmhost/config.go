package gokvmhost

import (
	"io"
	"log/slog"

	"github.com/gocolo/lockstep/kvm"
)

// MachineConfig says what New makes.
type MachineConfig struct {
	VCPUs  int    // 1 to 64; 0 means 1
	Memory uint64 // bytes: a multiple of 4096, from 32 MiB to 3 GiB
}

// Uplink is where the frames of the guest's NIC go. Buffer of package filter,
// Comparer of package compare and the types of package proxy are Uplinks.
//
// WritePacket takes a copy of an Ethernet frame of 14 to 65,535 bytes and does
// not wait. If it fails it has taken nothing: the frame stays in the guest's ring
// and is given again after Room's channel, which is the same every time, was
// sent to. Both are called from a goroutine of Run.
type Uplink interface {
	WritePacket(frame []byte) error
	Room() <-chan struct{}
}

// Disk is what the guest's disk is made of; a replication.Disk is one. Its
// methods are called from one goroutine of Run at a time, and may block: the
// guest's request is then not complete, and neither is a Pause. A call must
// return before Run can.
type Disk interface {
	io.ReaderAt
	io.WriterAt
	// Size returns the length in bytes, of which whole sectors of 512 are used.
	Size() int64
	// Sync returns when every write that was answered before is stable.
	Sync() error
}

// Config says what a Host's devices are connected to. The zero value is a guest
// with a serial port that nobody reads, and what the machine has of its own.
type Config struct {
	// Console takes what the guest writes to its first serial port. It is called
	// from a goroutine of Run; while it blocks, the port is busy and the guest
	// goes on. Nil discards.
	Console io.Writer
	// Disk is the guest's disk. Nil: the file given to the machine's AddDisk, if
	// any.
	Disk Disk
	// Uplink takes what the guest's NIC sends, and ReceivePacket is what it
	// receives. Nil: the tap given to the machine's AddTapIf, if any.
	Uplink Uplink
	// MAC is the NIC's address. All zero: the guest chooses one.
	MAC [6]byte
	// DirtyRing is as in kvm.AttachConfig. gokvm creates the vCPUs before anybody
	// could ask for a ring, so what is not 0 or kvm.AutoRing fails.
	DirtyRing int
	// CatchUp is as in kvm.AttachConfig.
	CatchUp bool
	// CPUID is as in kvm.Config: what vCPU i is told of its CPU, such as
	// kvm.CommonCPUID. Nil is kvm.SupportedCPUID.
	CPUID func(i int) ([]kvm.CPUIDEntry, error)
	// Log is told what a guest or a backend does that is odd: a broken ring, a
	// failed write. Nil: nobody.
	Log *slog.Logger
}
