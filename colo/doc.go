// Package colo keeps two virtual machines in coarse-grained lock-step: the
// checkpoint protocol between a primary, whose guest talks to the world, and a
// secondary, whose guest follows and goes on when the primary's host dies. The
// wire is that of QEMU's COLO (migration/colo.c).
//
// Most hosts want package colo/protect, which makes one session after the other; this
// one is for those who steer a session themselves, and for whoever wants to
// understand the protocol.
//
// # What a host brings
//
// A host VMM gives each side four things: its guest's [VM] (pause and resume),
// a vmstate.Registry with the guest's devices and memory, what to do with the
// guest's network output ([PrimaryNetwork], [SecondaryNetwork]) and its disks
// (a replication.Group). It connects the two sides as it likes, calls Run on
// each, and is told everything else as events. Run blocks; it returns nil when
// this side goes on alone, and otherwise why not.
//
// # One checkpoint
//
// The primary's guest runs. Its output is held, or leaves early if the
// secondary's guest has said the same (colo/compare). When a timer runs out or
// the guests differ, the epoch ends:
//
//	primary                                    secondary
//
//	send checkpoint-request          ──1──►    pause
//	                                 ◄──2──    send checkpoint-reply
//	send ram ahead (timer only)      ──3──►    stage ram
//	pause
//	mark: the epoch ends here
//	capture devices, then memory
//	early resume: the next epoch runs
//	send vmstate-send, ram           ──3──►    stage ram
//	send device state                ──4──►    stage device state: decode, validate
//	                                 ◄──5──    commit: say vmstate-received, then
//	output up to the mark may leave            flush memory, load devices, checkpoint disks
//	                                           resume
//	held disk writes go on           ◄──6──    send vmstate-loaded
//
// A secondary of this package says [Hello] before checkpoint-ready, and a primary of
// this package [Alive] while it waits. With PrimaryConfig.EarlyShare it also sends what its
// guest has written since the last checkpoint, before there is a request: [EarlyPages], which
// a secondary that has said [TakeEarly] stages as in step 3 while its own guest runs, and
// drops where no checkpoint follows. Such a secondary that keeps no copy of the
// primary's memory says [DirtyPages] before checkpoint-reply, and one that has the
// primary's [Channels], over which pages then go in step 3, says [UseChannels] after
// Hello, in front of TakeEarly. The numbers are the wire
// values of [Message]. The words of the three moments are used throughout: the
// secondary stages, then commits, then has loaded.
//
//   - Until vmstate-received, losing either side costs nothing: what was staged
//     is dropped and the secondary's guest has not been touched. Everything that
//     a peer can get wrong is found out by then.
//   - From the moment that vmstate-received is sent, the primary's output may be
//     out in the world. So the secondary commits, whatever happens to the
//     connection, and a failover that is ordered meanwhile waits for the end of
//     the commit (failover status relaunch). Only the secondary's own host can
//     make a commit fail; the guest is then torn, and a torn guest never runs.
//   - The primary's guest stands still only while its state is copied into the
//     memory of this process. What it does after that belongs to the next epoch,
//     and none of it leaves before its own checkpoint is received: packets stay
//     held ([PrimaryNetwork]), disk writes stay held (replication.Marker).
//     PrimaryConfig.LateResume gives QEMU's order instead.
//
// Epochs are numbered by their checkpoints. Epoch 0 is the initial
// synchronisation: memory is sent while the guest runs, pass after pass, and then the rest
// as in every checkpoint: captured while the guest stands still, and sent while it runs
// on, with its output held until checkpoint-ready (0 on the wire). Until then the guest
// stands still only where the rest cannot be captured, and with LateResume.
//
// # Failover
//
//	          Failover()                           commit ends
//	none ───────────────► require ──┬─► active ──► completed
//	  ▲                             │     ▲
//	  └── a new session             └─► relaunch      (torn: a commit failed)
//
// A session ends in one place. The guest is paused, COLO_EXIT says why, and then
// it is settled who goes on. A side that goes on stops replicating its disks,
// lets its held output leave and resumes its guest. A side that does not leaves
// its guest paused and drops what it held; its disks are stopped too. A step that
// holds something records the function that releases it, and every way out of Run
// calls all that were recorded. COLO_EXIT says "request" exactly when a failover or
// the end of the protection was ordered on this side, or its host has said by
// Expect that the end was ordered.
//
// An order says what the host knows:
//
//   - Lost: the heartbeat has ended. The other side may be alive and may think
//     the same of this one, so the arbiter is asked.
//   - Handed (a Secondary): the primary's guest stands still and was released for this
//     side. The arbiter is asked before the connection is closed.
//   - Failover: an operator wants this side to go on. With an [Arbiter] that is
//     a claim like any other (Claim.Ordered), made before the other side hears
//     of it; if it is refused, nothing has happened but the end of the session.
//     Without an Arbiter it is the same as Fenced.
//   - Fenced: the other side is known not to run. Nobody is asked.
//   - Yield: this side's guest is lost, the other side is to go on.
//   - End: nobody is to take over; see below.
//
// An arbiter's error that matches [ErrRefused] is final. Any other says that it
// could not be asked: it is asked again, first after 100 ms and at last every 5 s,
// until the context ends. Meanwhile Info says asking, the guest stands still,
// and orders are accepted.
//
// A survivor can be protected again at once: it makes a new Primary, with a new
// connection, of the guest that it runs.
//
// # Ending protection
//
// [Primary.End] and [Secondary.End], or the end of the context of Run, end the
// protection without a takeover: the primary's guest runs on unprotected and its
// output and writes are released, the secondary's stays paused, and its Run
// returns [ErrGoodbye] because it must not go on. The two sides agree on it in
// the session's connection, so that no arbiter is needed: one says [Goodbye] and
// the other answers. A secondary may say it at any time before a commit; a
// primary between two checkpoints. A secondary that cannot take the stream, or
// whose guest is torn, says goodbye by itself and why, and the primary runs on.
//
// Only two peers of this library can do so. A primary announces itself in the
// description at the end of the initial stream, which a QEMU throws away, and a
// secondary of this package answers with [Hello]. Towards a QEMU, End and the end of the
// context leave it unknown what the other side does. A secondary does not go on
// then and asks nobody. For a primary End is a claim at the arbiter, and a context
// that has ended lets it ask once more. A QEMU has to be told by itself: a
// secondary is quit, and a primary, whose guest stands still until then, leaves
// COLO by x-colo-lost-heartbeat. Without an arbiter tell it first, and then call
// Fenced on a primary of this package.
//
// # Time
//
//	time                          bounds                                             default  must be
//	PrimaryConfig
//	  CheckpointDelay             one trigger to the next                            20 s     -
//	  MinInterval                 the same, where a checkpoint is asked for          20 ms    less than CheckpointTimeout
//	  CheckpointTimeout           the age of a checkpoint, trigger to vmstate-loaded 5 s (1)  more than MaxDowntime
//	  MaxDowntime                 the pause that ends the initial synchronisation    300 ms   less than CheckpointTimeout
//	SecondaryConfig
//	  IdleTimeout                 the silence of a primary between checkpoints       5 min(2) at least PeerTimeout
//	  MinRate                     the slowness of the initial synchronisation        1 KiB/s  -
//	both
//	  PeerTimeout                 a transfer that stands still; Pause, Resume, disks 10 s (3) -
//	heartbeat
//	  timeout                     the silence of the peer's heartbeat                -        3 to 5 intervals
//
// (1) With an Arbiter; without one there is nobody to give the secondary up to,
// and PeerTimeout bounds each wait. In the initial synchronisation it counts
// from the last pause, and has 4 ns for each byte that was sent on top.
// (2) A primary of this package says [Alive] three times as often, whatever its delay.
// Towards a QEMU there is no bound unless one is set, which must be more than its
// x-checkpoint-delay.
// (3) This bounds the wait for a peer that is not known to be alive: with a
// [Heartbeat], a transfer is waited for as long as the heartbeat is alive. Pause,
// Resume and disks have as long as the checkpoint, which for a secondary is the
// primary's CheckpointTimeout, as it was announced, and PeerTimeout on top; where the
// checkpoint has no bound, they have PeerTimeout.
//
// NewPrimary and NewSecondary refuse what the last column rules out. Nothing else
// ends a session for being slow. Within a checkpoint a secondary may take its
// time for a pause, a commit or a disk, as long as the whole is not older than
// CheckpointTimeout; a transfer goes on as long as any byte moves within
// PeerTimeout, and in the initial synchronisation as long as it is not slower than MinRate, since
// whoever can connect would keep a secondary for ever by a byte now and then; and a secondary waits for its primary, which pauses its guest and
// marks its disks, for the primary's CheckpointTimeout, as it was announced, and
// PeerTimeout on top, or for IdleTimeout if the primary has none. A checkpoint that
// is older than CheckpointTimeout is an outage, since the guest's
// output is held: the primary gives its secondary up (event.OutputStalled,
// [ErrStalled]), asks the arbiter, and goes on alone. It asks before it closes
// the link, so that a secondary that is only slow does not ask first.
//
// # Goroutines
//
// A session runs on the goroutine that called Run. It has two of its own: that of a primary
// reads the link, and while an Arbiter is asked one watches for orders; and one for each of its
// Channels. All have ended when Run returns, for which a connection's Close must end a Read and
// a Write. Failover, Fenced, End, Lost, Expect, Handed, Yield, RequestCheckpoint, Info and Status may
// be called from any goroutine and do not wait for I/O.
package colo
