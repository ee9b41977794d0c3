// Package compare decides which of the primary guest's packets may leave, and
// when the guests have diverged.
//
// Most hosts want package colo/protect, or colo/proxy; this one is for those who
// compare packets of their own, or of captures.
//
// Both guests of a COLO pair answer the world. The packets of the secondary's
// guest go nowhere but into the comparison. A packet of the primary leaves as
// soon as the secondary's guest has sent the same; a packet that differs waits
// until a checkpoint has made the guests equal again, and is a reason for one.
//
// [Engine] is the decision: packets and the time go in, packets to release and
// reasons for a checkpoint come out. It does no I/O and has no clock.
//
// # What is compared
//
// A TCP connection is compared as two streams of bytes, by sequence number: how
// they are cut into segments, retransmitted or padded makes no difference. SYN,
// with what binds the connection (its options, and whether marks of congestion are
// understood), FIN, RST and urgent pointers are events of the stream and must agree; data or an
// urgent pointer that comes with a SYN, a SYN of Multipath TCP, also of a further connection
// (MP_JOIN), whose keys and random numbers two guests do not share before they are one, and data that
// comes with a RST, wait for the checkpoint. The rest of the
// header of a later segment is not compared: reserved bits, PSH, marks of congestion, and all other
// options but those of Multipath TCP.
//
// Sequence numbers are compared as they are, but for that of a SYN, which need not agree: two
// guests begin a connection with different numbers, and the packets of the secondary's guest
// come with those of the primary's from a filter.Rewriter, as in package colo/proxy. Without
// one each of these connections waits for checkpoints.
//
// UDP, ICMP and ICMPv6 are compared from their header on, packet by packet, any
// order; a checksum of zero and one that was computed differ. In front of these headers, and of
// TCP's, only the addresses of IP are compared; the rest leaves as the primary's guest has sent it.
// The destination is the last one where segment routing (RFC 8754) or a source route of IPv4 (RFC
// 791) names others before it. With other routing headers that have segments left, or a header that
// says that the packet is from another address (RFC 6275, RFC 5533), the packet waits for the
// checkpoint. Other protocols (SCTP, UDP-Lite) and fragments are compared with their IP header and
// the addresses of Ethernet, except for the fields that differ between two hosts by nature
// (identification, time to live, class, flow label, checksum). The fragments of a datagram match those
// of one datagram, in their order; one that is whole on one side only waits for the
// checkpoint. Packets in a VLAN or in a session of PPP over Ethernet are compared within it, ARP and neighbour discovery by whose address they
// claim, if the configuration says so.
//
// What cannot be compared (another EtherType, a header that contradicts itself, a
// frame that is too long, more than two VLAN tags) leaves at once or waits for
// the next checkpoint, as the configuration says, and is counted. IP with a
// malformed transport header always waits: a queue never holds both segments
// and packets that are none.
//
// # What is covered
//
// If the primary dies, a guest goes on that knows what the secondary knows. So
// nothing leaves that this guest could not go on from: no byte that it has not
// said, no acknowledgment that it has not given, the first of a connection
// included, no SYN, FIN or RST. Which guest that is changes at a receipt, not at a
// mark. Between the two it may still be the secondary's old guest, or already the
// one that the checkpoint makes, and what leaves must be covered by both. From the
// receipt on the checkpoint covers what the primary's guest had said before the
// mark, and a retransmission of that leaves at once.
//
// # What is changed
//
// The peer sees one guest that takes nothing back. A segment that has waited leaves with the
// newest timestamp that has left before, or the peer would drop it as old (RFC 7323 section 5);
// [Engine.Inbound] puts the timestamp that the guest itself sent back into the echo. With
// LowerAcks a segment that acknowledges more than the secondary's guest has leaves with the
// lower number, a window as far as both guests have room, and the SACK blocks that both hold;
// the rest follows as the secondary's guest catches up. An acknowledgment without data begins no
// later than what has left, unless the secondary's guest has said as much: a guest that went on from
// there would offer a window that the peer does not take, since it has one from a later segment
// (RFC 9293 section 3.10.7.4). Where the secondary's guest has given
// SACK blocks itself, the acknowledgment that it sent leaves, with the headers of the
// primary's. A guest that has dropped input is behind until the peer sends it again, and the
// peer does so only because nobody has told it that it need not.
//
// What Multipath TCP acknowledges of its own numbers (DATA_ACK) is an acknowledgment too: none
// leaves that the secondary's guest has not given on the same connection, and with LowerAcks it
// is lowered. Else the peer would not send on another connection what was lost with the
// primary's host. A segment whose option tells the peer anything else (DATA_FIN, MP_FASTCLOSE,
// ADD_ADDR and the like) waits for the checkpoint. The place that the option gives to the
// segment's data in the whole connection is not compared.
//
// With LowerAcks the part of a segment that the secondary's guest has sent leaves by
// itself when that guest sends it again, or has sent no more of the segment for 5 ms: its
// congestion window may have no room for the rest until that part is acknowledged. Data
// that the primary's guest sends again leaves only once if it still waits or has just
// left. Otherwise the repetition takes its turn behind the segments that wait: if the
// peer acknowledged it before them, the guest would take them for lost.
//
// With LowerAcks and [Engine.Inbound], a repetition of either guest leaves if the peer goes
// on lacking the bytes, whether the other guest repeats them or not. They are the bytes that
// have left before: a hash is kept of them. A segment in which the primary's guest repeats
// other bytes than those that left waits for the checkpoint, where the engine can tell. It can
// if the bytes left after the first repetition on the connection, if Inbound sees the peer's
// acknowledgments and none covers the bytes, and if the segment has all of a stretch of which a
// hash is kept. Before the first repetition no hashes are kept, since they would take more time
// than the comparison, and a guest that repeats other bytes than it sent is not noticed. A
// guest is not given the echo of a segment that it sent before its first repetition if the
// other guest may have caused that echo: it would conclude that what it repeated was not lost.
//
// # Epochs
//
// The pause of a checkpoint is the mark between one epoch and the next. What the
// secondary's guest has said before it becomes void, because that guest is
// rolled back, and a packet of it that is still on its way must never be taken
// for the answer to one of the next epoch. So after [Engine.Mark] the engine is
// deaf to the secondary (it drops the packets of the secondary's guest) until it
// is told that the packets of the new epoch begin: by the marker in the
// secondary's stream ([Engine.SecondaryMark]), or, if it sends none, by the end
// of its load ([Engine.Loaded]).
//
// # Flows that never agree
//
// The bytes that TLS, SSH and QUIC send are random. With Adaptive, a flow whose
// guests have differed in a few epochs is set apart: it leaves with the
// checkpoints, at a pace that the host sets, and is tried again now and then. A
// [Note] names the flow.
//
// # QEMU
//
// The default differs from QEMU's colo-compare where that is wrong: it loses
// packets on overflow, confuses stream positions, waits for packets that need
// not come. With Strict in its configuration an engine does what QEMU 7.2 does,
// to the order in which packets leave.
package compare
