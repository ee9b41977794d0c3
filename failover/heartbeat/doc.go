// Package heartbeat decides when a silent peer is a lost one.
//
// [Monitor] is the decision: told when the peer was heard and what time it is,
// it says whether the peer is lost and when it would be. [Run] is a monitor on
// a connection that both sides send beats over. What follows from a loss is
// not decided here: a host connects [ErrLost] to the Failover of its session,
// usually by way of an arbiter, because the peer may be thinking the same.
//
// The connection should not be the one that carries the checkpoints: a beat
// behind a hundred megabytes of memory comes late for no fault of the peer.
package heartbeat
