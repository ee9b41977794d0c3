// Package failover decides who goes on with a guest: whether a failover may
// proceed on this host ([Machine]), and which host has the guest at all
// ([Arbiter], [Keeper], [Gate]).
//
// Most hosts want package colo/protect, and of this one the arbiter that they give to
// it.
//
// # On this host
//
// Machine is the failover state machine of COLO: no I/O, no clock, no goroutine.
//
//	           Request          Begin            Complete
//	   none ───────────► require ─────► active ───────────► completed
//	    ▲                   │             ▲
//	    │             Begin │ in a load   │ (none, require)
//	    │ Reset             ▼             │
//	completed           relaunch ─────────┘ EndLoad(nil)
//
//	EndLoad(error): any state in a load ──► torn, for good
//	Withdraw: active ──► none, where an arbiter has refused
//
// The states and their order are QEMU's (QAPI enum FailoverStatus,
// migration/colo-failover.c), with two differences. QEMU goes from require to
// active and only then finds out that a load is in progress; here Begin asks
// that under the lock which StartLoad takes, so that active never overlaps
// with a load and relaunch follows require directly. And QEMU has no name for
// a guest whose load failed half way; here it is torn, and a torn guest is
// never resumed and never takes over.
//
// # Among hosts
//
// Two hosts that have lost each other cannot find out alone which of them shall
// go on. An [Arbiter] stands where both reach it and gives the guest to one of
// them at a time, as grants of generations that only grow:
//
//	 host a                 arbiter                  host b
//	Acquire after 0  ───►  generation 1: a
//	Renew            ───►        "
//	  (stopped)                  "        ◄───  Acquire after 1
//	  gate shuts by        a's term is over
//	  its own clock        generation 2: b ───►  gate opens
//	  (goes on)
//	Renew            ───►  refused
//
// A grant lasts for a term from its last renewal. The holder counts that term
// from before its request was sent, less a margin ([Holder]), and shuts its
// [Gate] at the end: no packet leaves, no write is acknowledged. Everybody else
// counts from when they saw the renewal. So one has stopped before another
// begins, whatever is delayed or stopped in between, as long as the hosts'
// monotonic clocks run at speeds that differ by less than the margin.
//
// A host that goes on alone, with the guest that it has, acquires it once more:
// the new generation refuses the secondary that it leaves behind, whose copy is
// old from then on.
//
// A holder that hands the guest over on purpose gives it up by [Keeper.Yield]: it shuts its gate for good and asks
// nobody. It tells the other host under which token it is known, and that host claims the guest from
// it ([Claim], From), which is granted at once. If that host is not heard of again the old holder claims the guest itself, and
// the arbiter decides between the two.
//
// The place that both reach need only be a [Store]: [StoreArbiter] makes an
// Arbiter of it. failover/sharedfile is a Store on a file system, failover/etcd
// (a module of its own) one in etcd. [Manual] is an Arbiter that asks a person.
// [Keeper] does all that a host has to do to get the guest and to keep it.
package failover
