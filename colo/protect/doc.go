// Package protect keeps one guest protected for its whole life on one host: it
// finds the other host, synchronises it, keeps it in step, decides with an arbiter
// who goes on when the two lose each other, protects the survivor again when the
// other comes back, and changes the sides on request. Both hosts run the same with
// mirrored configurations:
//
//	job, err := protect.New(protect.Config{
//		Name: "db1", Host: "a",
//		Guest: guest, Network: []protect.Network{nic},
//		Peer: protect.Peer{Listen: ":7777", Dial: "b:7777", Name: "b", PortConfig: protect.PortConfig{TLS: tls}},
//		Arbiter: arbiter, Start: first,
//	})
//	err = job.Run(ctx) // until the guest ends here for good
//
// It makes one session of package colo after the other. A host that wants to do
// that itself finds all parts in the packages below; nothing there knows this one.
//
// # States
//
//	            ┌──────────► waiting ◄──────────────────────────┐
//	            │               │ a primary is there            │ refused: the other side
//	 created ───┤               ▼                               │ has the guest
//	(who am I?) │           following ──────────────────────► asking
//	            │               ▲                            ▲  │ granted
//	            │               │ the other side runs it     │  ▼
//	            │        switching over ◄──┐        the link │ taking over
//	            │                          │        is lost  │  │
//	            └─► alone ──► synchronising ──► protected ───┘  │
//	                 ▲ ▲                           │            │
//	           pause │ └───────────────────────────┼────────────┘
//	          resume ▼                             │
//	               paused ◄────────────────────────┘
//
//	waiting, at a cold start: granted the guest       ──► alone
//	following, no arbiter: handed the guest           ──► taking over, as the primary has said last
//	where the guest runs: Cancel                      ──► cancelled, it runs on here
//	switching over by Migrate                         ──► concluded here, paused there
//	switching over, the verb's context ends early     ──► protected
//	any: the end of Run's context, Complete, an error ──► concluded
//	following, asking: a load failed half way (torn)  ──► concluded, this copy never runs
//
// The guest runs where the state is alone, synchronising, protected, paused or
// cancelled, and there only is it the one that the world talks to. What each state is as a QEMU
// JobStatus:
//
//	created         created
//	waiting         running
//	alone           running
//	synchronising   running
//	protected       ready
//	paused          paused
//	cancelled       concluded
//	following       ready
//	asking          pending
//	taking-over     pending
//	switching-over  pending
//	concluded       concluded
//
// # Verbs
//
// Each verb is allowed in these states and is a *StateError in the others. One whose
// context has ended before its turn comes changes nothing, and returns the context's
// cause. The end of Run's context is no verb: it is possible everywhere, leaves the
// guest paused and lets the other host go on.
//
//	pause       alone, synchronising, protected
//	resume      paused
//	complete    alone, synchronising, protected, paused, cancelled
//	checkpoint  protected
//	failover    protected, following, asking
//	fenced      protected, following, asking
//	switchover  protected
//	migrate     protected
//	cancel      alone, synchronising, protected, paused
//	save        alone, synchronising, protected, paused, cancelled
//	set-delay   created, waiting, alone, synchronising, protected, paused, cancelled, following, asking, taking-over, switching-over
//	grow        alone, protected, paused, cancelled
//
// # Who goes on
//
// The arbiter (package failover) gives the guest to one host at a time, under
// generations that only grow. The host that has it renews its grant; everything
// that the world sees of the guest asks the job's Gate first, which shuts by the
// host's own clock before the grant can be another's. A session belongs to the
// generation in which it began. A host that goes on, whichever it is, acquires the
// generation after it, and from then on the other host is refused: its copy is
// old. So a primary that was stopped and goes on finds its gate shut before its
// first packet; a secondary that was cut off never takes over from a primary that
// has gone on alone; and a connection that names an old generation is refused.
//
// A secondary waits as long as the primary's grant may last. With an arbiter that
// cannot be reached nobody takes over. A pair that is in step goes on all the same:
// the secondary promises its primary, again and again over the control connection,
// not to claim the guest for a term, and such a promise keeps the primary's gate
// open like a grant, since only a copy of the present generation could be granted
// the guest, and that of the secondary is the only one. A host whose process begins
// anew does not know what it has promised, so it claims nothing for a term (Start
// with Held). A promise to a host that has given the guest
// back, as a host does when it leaves, binds nobody: the arbiter's record says that it has.
//
// A guest that was saved goes on once: [Job.Save] and [Restore] by way of a stream, or
// [Job.SaveMapped] and [OpenSaved] by way of a file, from which it runs before its memory
// has been read.
//
// Without an arbiter an operator is asked: a pair that has lost each other stands still, and
// nothing leaves either host, until Failover or Fenced is called on one of them. A host that leaves
// may let out what its guest has said before until its Run has returned. The host that goes on
// seeks its secondary, and says in which session it has taken the guest over; the other host
// follows it as soon as it hears that. A host that stands still also asks the other one as soon as
// it can reach it. So it hears as well of a host that goes on and seeks nobody, because its
// protection is paused or cancelled. A primary goes on by itself if its secondary says that it will
// not: its copy was not whole, or it has left the session.
//
// # A switchover
//
// What can be done while the guest still runs comes first, and if the switchover ends there
// nothing is lost: the control connection is there, the arbiter has heard of the generation and answers the secondary,
// what the guest has written is sent, in rounds, and the secondary has been told to leave its guest standing from its
// next commit on; where output is compared it hears that when the primary's guest stands still for the last
// checkpoint. Then, with nobody running the guest:
//
//	primary      pauses it, and sends the rest of its memory and its devices   half a turn of the link
//	secondary    has all of that, and says so; from here on it can but commit  half a turn
//	primary      lets out what left the guest up to there, and shuts its gate for good
//	primary      says go; the secondary has committed meanwhile                half a turn
//	secondary    claims the guest from the primary, and lets it run            the arbiter is asked
//
// The secondary says afterwards that the guest runs. So a switchover takes a pause, a round trip
// of the link, and one question to the arbiter, which decides as well who goes on if the link breaks in between: the
// primary may claim the guest anew. Where the arbiter of the secondary does not heed such a
// claim (failover.HandoverArbiter) the primary releases the guest before it says go, and the arbiter is asked
// twice. The round trip cannot be saved: two hosts may
// not speak for the guest at a time, so the primary's last output leaves before the secondary's
// first, and it may only leave when the secondary has the state that it belongs to.
//
// Where it breaks before the primary shuts its gate, the guest runs on where it ran. Where its context ends before
// that it is called off, and the session goes on:
//
//	primary      is protected again, and a last checkpoint that is still to come is an ordinary one
//	primary      resumes the guest, if it stands still; its grant has been its own all the while
//	primary      says that the guest stays                                     half a turn
//	secondary    lets its guest run again; it has promised not to claim the guest
//
// A secondary that does not hear this keeps its copy paused between checkpoints, which nobody sees.
// After the release whoever claims
// the guest first has it: the secondary if it was told, or notices that the primary is gone,
// and has committed; the primary if the secondary says that it cannot, or is gone.
//
// # Connections
//
// All go to one port of the host that waits, from the one that has the guest, and
// begin with a hello: its version, the guest's name, both hosts' names, the
// generation, what the connection is for. The first is the control connection; it
// compares what both sides have (memory, disks, networks, devices with their versions,
// and what Config.Offer says), so that what cannot work is refused in words before
// anything moves, and its answer carries a token. The others are made side by
// side, and are refused without it. The session of package colo, the heartbeats and each [Proxy] have one
// each, and a disk has three: for writes, for whose copy it is, and for checksums.
// The memory of checkpoints has as many as both hosts can have (Config.Channels).
// A control connection that ends, or is silent, while the others are well is made again beside
// the session: the new one has the session's token, and takes the place of the old one.
// TLS 1.3 with certificates on both sides, or PortConfig.Insecure. A Port serves any
// number of guests.
//
// # What lives longer than a side
//
// The guest, its networks ([NIC], [Proxy]) and its disks ([Disk]) are handles for the life of
// the job; what stands below them changes with the side. Disks are made equal first, while the
// guest runs; then memory follows. Of a disk only what the secondary has missed is sent, or,
// where nobody knows that, what differs by its checksums. Of memory, after a link that was lost
// for a moment, what was written, or under way, since the secondary's last checkpoint; all of
// it wherever one of the two is not certain of that: one of them has begun anew, or has been
// anything else than primary and secondary of each other. So a primary leaves the dirty log on
// while it is alone and seeks a secondary, and a secondary keeps its copy of the memory while
// it waits.
//
// # A disk that grows
//
// [Job.Grow] makes a disk longer while the guest runs: the secondary's copy first, by a note of the control
// connection, and then, over connections that see the new length, the primary's, whose guest
// is told. The session goes on meanwhile. So a host that goes on with the guest has a disk that is at
// least as long as the guest was told, wherever the growth ends. Whichever copy is shorter when
// the two hosts next meet is made as long as the other, before anything is synchronised, if both are known to be of the
// same disk. Until then a write beyond the old end is refused.
//
// # Cold starts
//
// An image that is a file knows, beside whose copy it is, the last generation that its host has
// held, or has followed and been in step with. After both hosts were down, each looks at its own:
//
//   - Disks that the guest here has written itself lack nothing that it was told is
//     on them. Their host claims the generation after theirs, once Term and Lost have
//     passed in which nobody else has, and starts the guest anew from them. It
//     follows instead if the arbiter knows a later generation, or a primary comes.
//     If that is the next one, and this host's by the record, the host died before it had
//     recorded the grant, and starts the guest all the same.
//   - Disks of a secondary's last checkpoint, kept by DiskConfig.Journal, are older
//     than what the world may have seen. Their host waits for a primary. If that never
//     comes back, a person can decide to use them, by Start.
//   - Disks that show different moments of the guest, or have several generations, start
//     nothing, with Start or without. Their host can follow with them.
//
// Disks that the guest here has written itself are not given to a primary of the same
// generation: two hosts have gone on apart then, by a person's mistake. The primary
// says so in its LastError. A person who decides that they are not needed makes a new
// image.
//
// A job without an Arbiter starts by itself only what Start says.
//
// # Times
//
//	CheckpointDelay  100 ms   from one checkpoint to the next, if nothing asks earlier
//	MinInterval      20 ms    the same, where a checkpoint is asked for
//	Beat             200 ms   between two heartbeats
//	Lost             1 s      silence after which the other host is lost; at least two beats
//	Term             3 s      of a grant, and of a promise; renewed three times in it
//	PeerTimeout      10 s     a peer that beats and says nothing, or has not begun to beat; longer than Lost
//	                 the same until a disk that does not answer is told of (event.DiskStalled)
//	CheckpointTimeout 5 s     the age of a checkpoint: output is held while it is made
//	HungAfter        1 min    of a DiskConfig: an operation of a disk, for which a session that ends waits no longer
//	                 three times that, and PeerTimeout, until a primary that synchronises disks, and asks for nothing of them, is given up
//	                 5 s      for a connection to say what it is for
//	                 20 ms    to 1 s between two attempts to reach the other host; 1 s where it was reached, and did not come into step
//
// A secondary that waits to claim the guest, and hears its primary say that it has
// gone on in a later generation, claims it no more, and follows it again. So does a primary
// that hears its secondary say that it has taken the guest over in their session, also
// where the arbiter is not reached.
//
// Ask asks the other host how it stands, over the same port: for an arbiter that has
// nobody else to ask, and for an operator's tools.
//
// A takeover begins at the latest a term after the last renewal, or promise, of a
// primary that is gone, or when it has been silent for Lost, whichever is later.
//
// # Goroutines
//
// Run's own, one that renews the grant, one for each question to the arbiter or the fencer for as
// long as that takes, one that tells of disks that do not answer, one for each Network and, if it has a port
// of its own, one for that and for each connection that comes in. A session adds
// one for the heartbeat, two for the control connection, one more on a primary, which makes
// that again, one for the promises, and some for each disk. A session has one more for each of the
// Channels.
// All have ended when Run returns. Events are published, and Config's functions
// called, on any of them.
package protect
