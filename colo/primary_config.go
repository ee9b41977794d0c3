package colo

import (
	"log/slog"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/vmstate"
)

// PrimaryConfig says what a primary protects and how. VM and State are
// required.
type PrimaryConfig struct {
	VM    VM                // the guest; a session takes back its own pauses and nobody else's
	State *vmstate.Registry // its devices and its memory (a ram.Saver)

	Net   PrimaryNetwork    // nil: the guest's output is not this session's concern
	Disks replication.Group // nil: no disks
	RAM   PageCounter       // nil: events and Info count no pages; it may be a Resender

	Events  *event.Bus // nil: nobody listens
	Arbiter Arbiter    // nil: a broken session waits for Failover or the end of the context

	// Heartbeat, if set, tells a slow peer from a lost one: while it is alive,
	// PeerTimeout ends no wait for the peer. Nil: the peer is lost when it has
	// made no progress for PeerTimeout.
	Heartbeat Heartbeat

	// Machine is the machine type in the stream's configuration section. A
	// QEMU accepts its own or a prefix of it.
	Machine string

	// CheckpointDelay is the time from one checkpoint's trigger to the next
	// one's, if nothing asks earlier (QEMU's x-checkpoint-delay). Zero: 20 s,
	// QEMU's default. Negative: back to back.
	CheckpointDelay time.Duration

	// MinInterval is the least time from one checkpoint's trigger to the next
	// one's where that is asked for (RequestCheckpoint): the guest stands still
	// in each of them. Converge does not wait for it. Zero: 20 ms. Negative: none.
	MinInterval time.Duration

	// CheckpointTimeout bounds the age of a checkpoint, from its trigger until
	// vmstate-loaded: the guest's output is held meanwhile, and the wait for
	// the secondary is an outage. After it the primary gives its secondary up,
	// by way of the arbiter (ErrStalled, event.OutputStalled). Zero:
	// DefaultCheckpointTimeout if there is an Arbiter, otherwise no bound.
	// Negative: no bound. Within it a secondary may take its time: PeerTimeout
	// then only bounds how long a transfer stands still.
	CheckpointTimeout time.Duration

	// PeerTimeout bounds each wait for the peer to make progress, and each
	// wait for VM and Disks that CheckpointTimeout does not bound. Zero:
	// DefaultPeerTimeout. Negative: no bound.
	PeerTimeout time.Duration

	// QEMUWire says that nothing is to be said to the peer that a QEMU does not
	// say, not even where it would not notice. The two sides then cannot say
	// goodbye to each other. It is not needed towards a QEMU.
	QEMUWire bool

	// MaxDowntime is how long the guest may stand still at the end of the
	// initial synchronisation, estimated from the rate so far. Zero: 300 ms,
	// QEMU's default. What is left then is captured, unless LateResume is set, which takes
	// much less time; and further passes are made as long as they halve it. A guest that
	// dirties memory faster than it can be sent is stopped after MaxPasses passes over its
	// memory all the same; zero: 30.
	MaxDowntime time.Duration
	MaxPasses   int

	// ThrottleMax bounds how much a guest that dirties memory faster than it can be
	// sent is slowed down: its vCPUs are kept from running for at most this many
	// percent of the time. In the initial synchronisation that begins with 20 after
	// two passes in a row that gained less than half, and grows by 10, as
	// auto-converge does in QEMU; it ends with the synchronisation. Zero: 99.
	// Negative: the guest is never slowed down.
	ThrottleMax int

	// ThrottleShare is the share of the time that checkpoints may take, 0 to 1.
	// A guest whose checkpoints take more, from trigger to vmstate-loaded, is
	// slowed down step by step, and sped up again step by step when they take
	// less than half of it. Zero: never. It must be zero with a negative
	// CheckpointDelay.
	ThrottleShare float64

	// Throttler slows the guest down. Nil: VM, if it is one.
	Throttler Throttler

	// Stopper tells how long the guest really stood still. Nil: VM, if it is
	// one.
	Stopper Stopper

	// LateResume keeps the guest paused until vmstate-loaded, as QEMU's
	// primary does. Otherwise it runs on as soon as its state is captured.
	LateResume bool

	// AheadThreshold: if the last checkpoint sent more than this many bytes, a
	// checkpoint that the timer asks for sends memory ahead, while the guest still
	// runs, and after the pause only the pages that were written again, and those
	// that a RAM which is an AheadSender has left out because they are written all
	// the time. Zero: 4 MiB. Negative: never.
	AheadThreshold int64

	// EarlyShare is the share of the link, 0 to 1, that is spent between two checkpoints on
	// what the guest has written since the last, so that the next one finds little to send,
	// whatever asks for it; and if that is a divergence, it waits for one write of about a
	// millisecond at most. Pages that are written again and again are left out, and all of
	// it rests for some checkpoints where it brings less than an eighth of their pages. What the link carries is
	// taken from how long checkpoints took. Zero: nothing is sent early. It is not the
	// default, since each look at what the guest has written, of which there are up to
	// eight from one checkpoint to the next, costs the guest a fault for each page that it
	// writes again, and since output that leaves by comparison does not wait for
	// checkpoints. Where checkpoints are large and output waits for them it pays: use 0.5.
	//
	// RAM must be an EarlySender. Nothing is sent early to a secondary that does not say
	// TakeEarly, such as a QEMU; a secondary that keeps no copy does not say it to a primary
	// whose RAM sends differences (XBZRLE). With Channels, early pages go over them like any
	// others.
	EarlyShare float64

	// Channels carry the memory of checkpoints beside conn, to a secondary that has
	// them too. RAM must be a PageSource.
	Channels Channels

	// Step, if set, is called before each step of a checkpoint, on the
	// goroutine in Run, with the step's name (see the package comment) and
	// the epoch. It may block; the protocol then stands still.
	Step func(op string, epoch uint64)

	// Trace, if set, is told of each message. See Link.
	Trace func(dir string, m Message, value uint64)

	// Logger is told of each event, at its event.Level, with the side and the
	// checkpoint; guest and generation are the host's to add (Logger.With). Nil:
	// nothing is logged.
	Logger *slog.Logger
}

// PageCounter counts the pages of guest memory that the last checkpoint carried
// (ram.Saver).
type PageCounter interface{ Pages() uint64 }
