// Package failover decides whether a failover may proceed. It is the failover
// state machine of COLO, and nothing else: no I/O, no clock, no goroutine.
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
package failover
