// Package lockstep has no code: it is the map of the packages below it. They keep
// two virtual machines in coarse-grained lock-step (COLO), so that a guest goes on
// on another host, with its memory, its disks and its connections, when its own
// host dies. The wire protocol is that of QEMU's COLO.
//
// # To protect the guests of your own VMM
//
// Package [github.com/gocolo/lockstep/colo/protect] does all of it with one call on
// each host: it finds the other host, synchronises, takes over, protects again and
// changes the sides. It needs your guest as a protect.Guest and, for two hosts that
// must decide alone, an arbiter. examples/protected is the shortest program that
// uses it; colo/colotest.TestVM tests your guest against what it relies on. Package
// [github.com/gocolo/lockstep/colo/protect/control] gives others a QMP monitor of it
// and the page of [github.com/gocolo/lockstep/colo/protect/watch].
//
// A VMM on KVM finds the pauses, the vCPU state and the dirty log in package
// [github.com/gocolo/lockstep/kvm]. One without devices of its own finds a whole small
// machine in [github.com/gocolo/lockstep/kvm/pc], and one that uses gokvm has that taken over by
// [github.com/gocolo/lockstep/kvm/gokvmhost].
//
// # To steer a session by hand
//
// Package [github.com/gocolo/lockstep/colo] is one session between two hosts: the
// checkpoint protocol, who goes on, and the times that bound it. Its comment is the
// page to read to understand the protocol. You bring the connections, the networks
// ([github.com/gocolo/lockstep/colo/proxy], or a filter.Buffer of
// [github.com/gocolo/lockstep/colo/filter]), the disks
// ([github.com/gocolo/lockstep/replication]), a heartbeat
// ([github.com/gocolo/lockstep/failover/heartbeat]) and the arbiter. A host that has all
// that and changes to colo/protect finds in docs/architecture.md what takes its place.
//
// # To choose an arbiter
//
// Package [github.com/gocolo/lockstep/failover] says what an arbiter promises.
// [github.com/gocolo/lockstep/failover/sharedfile] keeps one in a directory that both
// hosts reach, failover/etcd (a module of its own) in an etcd cluster,
// [github.com/gocolo/lockstep/failover/program] in whatever place a program reaches, and
// failover.Manual asks an operator. [github.com/gocolo/lockstep/failover/failovertest]
// tests your own. docs/operations.md compares them.
//
// # To stand by for a QEMU
//
// Package [github.com/gocolo/lockstep/colo/standby] is the secondary of a guest whose
// devices nobody here knows. It keeps the last whole checkpoint of a stock QEMU and
// writes it as a migration stream that a QEMU takes with -incoming. With
// [github.com/gocolo/lockstep/colo/quickack] its connection does not keep the QEMU
// waiting for acknowledgments. examples/lockstep-qemu is the program for operators.
//
// # To move a guest
//
// Package [github.com/gocolo/lockstep/migrate] moves a guest that nobody protects to
// another host, and lets it run there before its memory has come where that is too much
// to wait for. Either side may be a QEMU.
//
// # To read or write a migration stream
//
// Package [github.com/gocolo/lockstep/vmstate] has the sections and the devices,
// [github.com/gocolo/lockstep/vmstate/ram] the memory,
// [github.com/gocolo/lockstep/vmstate/ram/multifd] the packets of further channels,
// [github.com/gocolo/lockstep/vmstate/diff] what two streams differ in, and
// [github.com/gocolo/lockstep/qemufile] the integers below all of them.
// examples/streamdump is the program.
//
// # To compare packets
//
// Package [github.com/gocolo/lockstep/colo/compare] decides which packets of two guests
// say the same. It does no I/O. [github.com/gocolo/lockstep/colo/filter] carries,
// mirrors and rewrites packets, and [github.com/gocolo/lockstep/colo/filter/tap] is a
// Linux TAP device. examples/netcompare compares two captures.
//
// # To replicate a disk
//
// Package [github.com/gocolo/lockstep/replication] keeps two copies of a disk that
// agree at every checkpoint, and [github.com/gocolo/lockstep/replication/nbd] serves and
// uses disks by the NBD protocol. examples/diskreplica does it without a guest.
//
// # To watch and to steer a host
//
// Package [github.com/gocolo/lockstep/event] has what happens, as types and as QMP's
// JSON; [github.com/gocolo/lockstep/event/qmp] serves a QMP monitor;
// [github.com/gocolo/lockstep/colo/metrics] writes a session's figures as Prometheus
// text.
package lockstep
