// Package etcd keeps an arbiter's record in an etcd cluster. It is a module of its own,
// so that only those who use it link etcd's client.
//
//	client, err := clientv3.New(clientv3.Config{Endpoints: endpoints, DialTimeout: time.Second})
//	arbiter := etcd.New(client, "/lockstep/db1", etcd.Config{})
//
// # How it is kept
//
// One key holds the record. Every change is a transaction that compares the key
// with the record that was read, so it is made on a majority of the members or not
// at all, and reads are linearizable. A record that a person has
// written in another spacing is compared by the revision of the key instead. Nothing else of etcd is used,
// and leases are not, on purpose: a lease has whole seconds, is counted by whichever member thinks
// that it leads, and is revoked by it, a deposed one too. Here the term is counted
// by the two hosts themselves (failover.StoreArbiter): the holder from before its
// renewal was sent, the claimant from when it had seen it. So terms may be as
// short as a transaction of the cluster takes, a few of them; the key outlives its
// holder, with the generation that a guest's copies are judged by; and a change of
// the leader is nothing but a renewal that takes longer.
//
// A renewal is a transaction, three in each term: a cluster that keeps hundreds of
// guests wants terms of seconds.
//
// # What it survives and what not
//
// It survives what etcd survives: the loss of a minority of the members, and of
// all of them for a time in which nobody takes over and the holder's output stops
// at the end of its term. It survives slow members, changes of the leader, answers
// that are late or lost, and the loss of one direction of a host's way to the members.
// Whoever restores the cluster from an old backup, or deletes the key, gets refusals
// (failover.Record.Acquire), as long as no host asks that has a guest as old as the backup: that one
// would be granted it. See docs/operations.md.
package etcd
