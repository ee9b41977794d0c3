package gokvmhost

import (
	"io"
	"log/slog"

	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/kvm/pc"
)

// MachineConfig says what New makes.
type MachineConfig struct {
	VCPUs  int    // 1 to 64; 0 means 1
	Memory uint64 // bytes: a multiple of 4096, from 32 MiB to 3 GiB
}

// Uplink is where the frames of the guest's NIC go.
type Uplink = pc.Uplink

// Disk holds the contents of the guest's disk; a replication.Disk is one.
type Disk = pc.Storage

// Stats counts accesses that no device answers and frames that no ring took.
type Stats = pc.Stats

// Config says what the devices of a Host are connected to. The zero value is a guest
// with a serial port that nobody reads, and the disk and network card of the machine.
type Config struct {
	// Console takes what the guest writes to its first serial port. It is called
	// from a goroutine of Run; while it blocks, the port is busy and the guest
	// goes on. Nil discards.
	Console io.Writer
	// Disk is the guest's disk. Nil: the file given to the machine's AddDisk, if
	// any.
	Disk Disk
	// Uplink takes what the guest's NIC sends, and ReceivePacket is what it
	// receives, also if it is a pc.Source. Nil: the tap given to the machine's AddTapIf, if any.
	Uplink Uplink
	// VNetHdr is the length of the virtio-net header that the Uplink's frames begin with, and
	// those of ReceivePacket; see pc.NIC. The machine's own tap has none.
	VNetHdr int
	// OtherPorts is as in pc.Devices, for a Host of Create. For a machine of gokvm there
	// is AddDevice.
	OtherPorts func(port uint16, in bool, p []byte) (known bool, err error)
	// MAC is the NIC's address. All zero: the guest chooses one.
	MAC [6]byte
	// DirtyRing is as in kvm.AttachConfig, and with Create as in kvm.Config. gokvm creates
	// the vCPUs before anybody could ask for a ring, so Attach fails if this is
	// neither 0 nor kvm.AutoRing.
	DirtyRing int
	// CatchUp is as in kvm.AttachConfig.
	CatchUp bool
	// CPUID is as in kvm.Config: it returns the CPUID table of vCPU i, as
	// kvm.CommonCPUID does. Nil is kvm.SupportedCPUID.
	CPUID func(i int) ([]kvm.CPUIDEntry, error)
	// Features is as in kvm.Config: what the guest is told by MSRs, as kvm.CommonFeatures
	// does.
	Features []kvm.MSR
	// Log gets a record when a guest or a backend does something odd: a broken
	// ring, a failed write; what a guest can repeat is logged once a second, with how
	// often it was not ("unsaid"). Nil: nothing is logged.
	Log *slog.Logger
}
