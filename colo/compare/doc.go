// Package compare decides which of the primary guest's packets may leave, and
// when the guests have diverged.
//
// Both guests of a COLO pair answer the world. What the secondary's guest says
// goes nowhere but here. A packet of the primary's leaves as soon as the
// secondary's guest has said the same; what differs stays until a checkpoint
// has made the guests equal again, and is a reason for one.
//
// [Engine] is the decision: packets and the time go in, packets to release and
// reasons for a checkpoint come out. It does no I/O and has no clock.
//
// # What is compared
//
// A TCP connection is compared as two streams of bytes, by sequence number: how
// they are cut into segments, retransmitted or padded makes no difference. SYN,
// FIN and RST are events of the stream and must agree. A segment leaves only if
// the secondary's guest has acknowledged what it acknowledges: after a failover
// nobody could send the client's bytes again. UDP, ICMP and ICMPv6 are compared
// from their header on, packet by packet, any order; other protocols and
// fragments with their IP header, except for the fields that differ between two
// hosts by nature (identification, time to live, class, checksum). A packet
// that could not be compared (ARP, VLAN, malformed) leaves at once or waits for
// the next checkpoint, as the configuration says, and is counted.
//
// # Epochs
//
// The pause of a checkpoint is the mark between one epoch and the next. What the
// secondary's guest has said before it becomes void, because that guest is
// rolled back, and a packet of it that is still on its way must never be taken
// for the answer to one of the next epoch. So after [Engine.Mark] the engine is
// deaf to the secondary until it is told that the packets of the new epoch
// begin: by the marker in the secondary's stream ([Engine.SecondaryMark]), or,
// if it sends none, by the end of its load ([Engine.Loaded]).
//
// # QEMU
//
// The default differs from QEMU's colo-compare where that is wrong: it loses
// packets on overflow, confuses stream positions, waits for packets that need
// not come. With Strict in its configuration an engine does what QEMU 7.2 does,
// to the order in which packets leave.
package compare
