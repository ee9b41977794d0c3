// Package colo keeps two virtual machines in coarse-grained lock-step: the
// checkpoint protocol between a primary, whose guest talks to the world, and a
// secondary, whose guest follows and goes on when the primary's host dies. The
// wire is that of QEMU's COLO (migration/colo.c).
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
// The numbers are the wire values of [Message]. The words of the three moments
// are used throughout: the secondary stages, then commits, then has loaded.
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
// synchronisation: memory is sent while the guest runs, then the rest while it
// stands still, until checkpoint-ready (0 on the wire).
//
// # Failover
//
//	          Failover()                           commit ends
//	none ───────────────► require ──┬─► active ──► completed
//	  ▲                             │     ▲
//	  └── a new session             └─► relaunch      (torn: a commit failed)
//
// A session ends in one place. The link is closed, the guest is paused,
// COLO_EXIT says why, and then it is settled who goes on: the order that was
// given ([Primary.Failover], [Secondary.Failover]), or the answer of the
// [Arbiter], or the wait for one of the two. A side that goes on stops
// replicating its disks, lets its held output leave and resumes its guest. A
// side that does not leaves its guest paused. COLO_EXIT says "request" exactly
// when a failover was ordered on this side.
//
// A survivor can be protected again at once: it makes a new Primary, with a new
// connection, of the guest that it runs.
//
// # Time
//
// Nobody waits for ever. A read or write that makes no progress within
// PeerTimeout fails, the host's own Pause and Resume are given as long, and the
// secondary's wait for the next checkpoint is bounded by IdleTimeout. A peer
// that is silent without a checkpoint under way is noticed by a heartbeat
// (failover/heartbeat), which calls Lost.
//
// # Goroutines
//
// A session runs on the goroutine that called Run and has none of its own,
// except for one that watches for Failover while an Arbiter is asked; it has
// ended when Run returns. Failover, Lost, RequestCheckpoint, Info and Status may
// be called from any goroutine and do not wait for I/O.
package colo
