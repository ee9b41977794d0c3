package colo

import (
	"context"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// VM is the guest of this host. A session calls it from the goroutine in Run
// only; others (an operator, a disk that is full, a debugger) may pause and
// resume the same guest at the same time, from any goroutine. The context carries
// the deadline of the wait (PeerTimeout of the configuration). What follows with
// "must" is checked by colotest.TestVM.
//
// Pauses nest. The guest must stand still as long as more pauses have succeeded
// than were taken back by Resume. So whoever pauses it can rely on it, and a
// session takes back only the pauses that it made. The host pauses the guest of a
// secondary once before NewSecondary; the session takes that pause back. If the
// session ends without going on, it leaves one pause to the host.
//
// The devices of the guest (vmstate.Device) may refuse to be saved, and must
// refuse to be loaded, while it runs.
type VM interface {
	// Pause counts a pause and returns when no vCPU runs, every exit that was
	// pending has been completed, and no device writes guest memory any more.
	// The memory, and what the devices save, must not change until Resume. It
	// must return when ctx ends, with an error unless the guest stands still
	// by then; a Pause that returns an error must not count.
	Pause(ctx context.Context) error
	// Resume takes one pause back. When none is left the guest must run on,
	// before or soon after Resume returns. Resuming a running guest must do
	// nothing. It must return when ctx ends; a Resume that returns an error
	// must not count.
	Resume(ctx context.Context) error
}

// PrimaryNetwork holds the output of a primary's guest and lets it leave. Its methods
// are called from the goroutine in Run and must not wait for a slow network:
// they hand what may leave to another goroutine, which writes it.
//
// Epochs number the checkpoints; epoch 0 is the initial synchronisation, and
// output is held from its mark on. filter.Buffer and compare.Comparer
// implement this interface.
//
// A host may die after Received and before that goroutine has written all that may leave:
// the secondary's guest then remembers output that nobody has seen. A network of the
// host's own that loses nothing is a vmstate.Device of both guests too: what it saves, after
// Mark, is all output up to the mark that has not left, and a secondary that takes over sends
// what it has loaded before its guest's own. filter.Buffer and package colo/proxy do so.
type PrimaryNetwork interface {
	// Mark ends an epoch. The guest is paused and its devices are not yet
	// saved: its output so far belongs to epoch, what follows to the next
	// and is held.
	Mark(epoch uint64) error
	// Received: the secondary holds all of epoch. Output up to its mark
	// may leave. The guest may be running.
	Received(epoch uint64) error
	// Loaded: the secondary has put its guest into the state of epoch.
	Loaded(epoch uint64) error
	// Failover: this side goes on alone. All that is held leaves, in
	// order, and what follows passes.
	Failover() error
}

// SecondaryNetwork takes the output of a secondary's guest, which leaves only after a
// failover. Its methods are called from the goroutine in Run.
type SecondaryNetwork interface {
	// Commit: memory, devices and disks are now in the state of epoch; output
	// that the guest gave before is void. The guest is paused.
	Commit(epoch uint64) error
	// Resumed: the guest runs on from the state of epoch.
	Resumed(epoch uint64) error
	// Failover: this side goes on alone, from the state its guest is in.
	Failover() error
}

// Dropper is a PrimaryNetwork or a SecondaryNetwork that wants to know that its
// side does not go on: Drop is called at the end of Run in place of Failover.
// Output that it holds must never leave, and calls that wait for it must return.
type Dropper interface{ Drop() error }

// Heartbeat says whether the other side's host has been heard of lately: a
// heartbeat.Pulse is one. While it is alive a session waits for a peer that makes
// no progress, as long as the age of a checkpoint allows. The end of the heartbeat
// is told to Lost; this is asked only when PeerTimeout has passed. Alive is called
// on any goroutine and must not wait.
//
// So PeerTimeout does not notice a connection that dies without a word while the
// connection of the heartbeat lives: CheckpointTimeout does, once there are checkpoints,
// or TCP itself (TCP_USER_TIMEOUT).
type Heartbeat interface{ Alive() bool }

// A Waiter is a VM whose vCPUs may wait for something that comes only after the arbiter has
// given this host the guest: the answer to a disk write that replication holds back until
// then (see replication.Primary.Gated). Such a guest cannot be paused before the arbiter
// has been asked. At the end of a session with an Arbiter, where Waits returns true and
// Pause does not return, the session ends the context of Pause and asks the arbiter while
// the guest waits. Waits is called by another goroutine during Pause, and must not block.
type Waiter interface {
	Waits() bool
}

// Stage holds the memory of a checkpoint that has been received, until the checkpoint is
// complete (ram.Cache).
type Stage interface {
	// Flush puts the staged pages into the memory of the guest, which is paused.
	Flush() error
	// Discard forgets the staged pages; the memory of the guest stays as it was.
	Discard()
}

// Settler is a Stage that can put off a part of its work: Settle is called for
// that part when vmstate-loaded has been sent, before the wait for the next
// checkpoint. Both guests run meanwhile.
type Settler interface{ Settle() error }

// Loader takes a guest's state in place of a vmstate.Registry, on a host that
// does not know the guest's devices (standby.Copy). Its methods are called from
// the goroutine in Run; Load, LoadDevices, Commit and Rollback do what the methods of
// a Registry do: what was loaded is staged until Commit or Rollback.
type Loader interface {
	// LoadInitial reads the initial migration, from the file header to the
	// description, and no further. onCommand is called for each command in it;
	// its error must end the load and be returned.
	LoadInitial(r *qemufile.Reader, onCommand func(vmstate.Command) error) error
	// Load reads the live sections of a checkpoint, up to and with the EOF
	// byte, and stages them. A load that fails must leave nothing staged.
	Load(r *qemufile.Reader, onCommand func(vmstate.Command) error) error
	// LoadDevices decodes, checks and stages the device state of a checkpoint,
	// which is valid until it returns.
	LoadDevices(state []byte, onCommand func(vmstate.Command) error) error
	// Commit puts what was staged into the guest. Only a fault of this host may
	// make it fail; the guest is then torn.
	Commit() error
	// Rollback drops what was staged. Without anything staged it must do
	// nothing.
	Rollback()
}

// stager has the methods that a checkpoint calls on a Loader or a vmstate.Registry.
type stager interface {
	Load(r *qemufile.Reader, onCommand func(vmstate.Command) error) error
	LoadDevices(state []byte, onCommand func(vmstate.Command) error) error
	Commit() error
	Rollback()
}

// Claim is the question of one side to the arbiter: may it go on alone?
type Claim struct {
	Mode  event.Mode // the side that asks
	Epoch uint64     // the last checkpoint it knows to be committed on both sides
	Cause error      // why its session ended

	// Ordered: an operator, or whoever called Failover or End, wants this side
	// to go on, and the other side may be well.
	Ordered bool
}

// Arbiter decides who goes on when the two sides have lost each other. Its
// answer must come from somewhere that both can reach and that answers only one
// of them with yes, for good: a lock service, a witness, an operator. Two
// arbiters that both say yes are a split brain, and no library can prevent it;
// that is why there is no default that grants.
type Arbiter interface {
	// Arbitrate returns nil if this side shall go on. An error that matches
	// ErrRefused says that the other side does: it is final. Any other error
	// says that nobody could be asked; Arbitrate is then called again after a
	// while, until the context of Run ends. It is called with the guest paused,
	// unless the guest cannot be paused (see Waiter), and may take as long as
	// it needs. Its context ends when the context of Run does, when Fenced
	// settles the matter, or when Failover is called: then Arbitrate is called
	// again with Ordered set.
	Arbitrate(ctx context.Context, c Claim) error
}

// ArbiterFunc makes an Arbiter of a function.
type ArbiterFunc func(ctx context.Context, c Claim) error

// Arbitrate calls f.
func (f ArbiterFunc) Arbitrate(ctx context.Context, c Claim) error { return f(ctx, c) }
