// Package heartbeat decides when a silent peer is a lost one.
//
// Most hosts want package colo/protect, which has heartbeats; this one is for those who
// steer a session themselves.
//
// [Monitor] is the decision: told when the peer was heard and what time it is,
// it says whether the peer is lost and when it would be. [Run] is a monitor on
// a connection that both sides send beats over. A [Pulse] is Run with a state that
// can be asked for, which is what a session wants that is to tell a slow peer from a
// lost one.
//
// What follows from the end of a heartbeat is not decided here. A host tells its
// session of every end that it did not ask for itself, with colo's Lost, and at
// once:
//
//   - [ErrLost]: the peer is silent, or its connection broke.
//   - [ErrGoodbye]: the peer's host has stopped its heartbeat in good order. A
//     session that it has not ended as well has no partner any more.
//   - [ErrProtocol]: whatever is at the other end, it is not the peer.
//
// Each of them ends the session, and the arbiter says which side goes on. Do not
// call Failover or Fenced for it: those are orders of an operator who knows
// more, and a peer that is lost here may be thinking the same of this side.
//
// The connection should not be the one that carries the checkpoints: a beat
// behind a hundred megabytes of memory comes late for no fault of the peer.
package heartbeat
