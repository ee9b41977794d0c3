package colo

import (
	"log/slog"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate"
)

// SecondaryConfig says which guest follows that of the primary. VM, RAM and one of
// State and Loader are required.
type SecondaryConfig struct {
	VM     VM                // the guest, paused
	State  *vmstate.Registry // its devices and its memory (RAM is registered there as a live loader)
	Loader Loader            // takes the place of State where the devices are not known
	RAM    Stage             // a ram.Cache; it may be a Settler, a PageCounter, a CopylessStage and an EarlyStage

	Net   SecondaryNetwork  // nil: the guest's output is not this session's concern
	Disks replication.Group // nil: no disks

	Events  *event.Bus // nil: nobody listens
	Arbiter Arbiter    // nil: a broken session waits for Failover or the end of the context

	// Heartbeat, if set, tells a slow peer from a lost one: while it is alive,
	// PeerTimeout ends no wait for the peer. Nil: the peer is lost when it has
	// made no progress for PeerTimeout.
	Heartbeat Heartbeat

	// Machine, if not empty, is the machine type that the stream must name.
	Machine string

	// MaxDeviceState bounds the device state of a checkpoint, in bytes. Zero:
	// 256 MiB.
	MaxDeviceState uint64

	// PeerTimeout bounds each wait for the peer to make progress within a
	// checkpoint, and each wait for VM and Disks where the primary has not said
	// how old a checkpoint may be. A primary of this package pauses its guest in
	// the middle of a checkpoint, and so may be silent there for as long as it has
	// said that a checkpoint may be old, and PeerTimeout on top; one that has not
	// said it, for IdleTimeout. Zero: DefaultPeerTimeout. Negative: no bound.
	PeerTimeout time.Duration

	// IdleTimeout bounds the wait for the next checkpoint. A primary of this package
	// says now and then that it lives, whatever its CheckpointDelay; towards a
	// QEMU it must be longer than that one's x-checkpoint-delay. Zero: five
	// minutes towards a primary of this package, and no bound towards a QEMU. Negative:
	// no bound; a heartbeat notices sooner either way.
	IdleTimeout time.Duration

	// MinRate is how many bytes a second the initial synchronisation must bring, over the
	// link and the channels: of the time for which this side waits for the primary there, so
	// much as has come does not pay for is at most three times PeerTimeout. A Heartbeat that is
	// alive excuses it. Zero: DefaultMinRate. Negative, or a negative PeerTimeout: no bound.
	MinRate int64

	// Channels bring the memory of checkpoints beside conn, from a primary that has
	// them too. RAM must be a PageTarget.
	Channels Channels

	// QEMUWire: as in PrimaryConfig.
	QEMUWire bool

	// Step and Trace: as in PrimaryConfig.
	Step  func(op string, epoch uint64)
	Trace func(dir string, m Message, value uint64)

	// Logger: as in PrimaryConfig.
	Logger *slog.Logger
}
