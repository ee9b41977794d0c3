// Package proxy is the network of a protected guest's NIC, one type for each side, made
// of the parts in colo/filter and colo/compare.
//
// Hosts whose guest's output may wait for its checkpoint want package colo/protect
// and its NIC; this one is for sessions that a host steers itself.
//
//	     network                                      network
//	       │ ▲                                          │ ▲
//	   Run │ │                         after a failover │ │ Run
//	       ▼ │                                          ▼ │
//	    Primary  ───── Serve: input, mirrored ────►  Secondary
//	    compares ◄──── Serve: what the guest says ── translates, keeps
//	       │ ▲                                          │ ▲
//	Deliver│ │WritePacket                        Deliver│ │WritePacket
//	       ▼ │                                          ▼ │
//	  primary's guest                             secondary's guest
//
// [Primary] gives what arrives to the guest and a copy of it to the secondary,
// and lets what the guest sends leave as soon as the secondary's guest has said
// the same, or the checkpoint that covers it is received. [Secondary] gives the
// copies to its guest, and sends what that says to the primary, which compares;
// it also keeps what its guest has sent since the last checkpoint, for a
// takeover. With Continuous nothing is mirrored or compared, and all output
// waits for its checkpoint.
//
// A host does these things:
//
//   - It gives the session (package colo) the Primary or Secondary for its VM and
//     for its Net, and registers it as a device of the guest.
//   - The NIC calls WritePacket, and is given packets by Deliver.
//   - On goroutines of the host, Run moves packets between the proxy and the
//     network, and Serve between the two sides, by one connection of their own.
//
// # Epochs
//
// The pause of a checkpoint is the mark between two epochs, and each packet is in
// exactly one of them, the same on both sides.
//
// Input is delivered only to a guest that runs: that is why a side stands between
// the session and the VM. On the primary a packet is delivered and mirrored in
// one step, which a pause comes before or after. So a packet that was delivered
// before the mark is part of the checkpoint's state, and comes before the
// marker in the mirrored stream; a packet that is delivered after the resume is
// not part of that state, and comes behind the marker. The secondary drops what
// is older than its guest, and lets what is newer wait until that epoch is
// committed.
//
// Output before the mark leaves when the checkpoint is received, if it has not
// left before. What may leave and has not at the mark goes with the checkpoint:
// both sides are devices, with the section of a filter.Buffer. A secondary that
// takes over sends that first and then what its own guest has said since: what
// the primary's guest remembers to have sent is never missing, wherever in the
// primary it was when its host died. Some may leave twice, with the same content,
// which a network does anyway.
//
// # What does not pass
//
// A packet leaves when it has been compared or a checkpoint covers it, unless the
// host asks for less by name: by PassUncompared, or by Strict, which does what QEMU
// does. With Continuous every packet waits for its checkpoint. Otherwise:
//
//   - IPv4 and IPv6 are compared, within VLANs (802.1Q, 802.1ad) and within
//     sessions of PPP over Ethernet too. A tag of VLAN 0, which has a priority
//     alone, counts as none.
//   - ARP and neighbour discovery follow timers of each guest. Such a message
//     leaves if the secondary's guest has claimed the same address for the same
//     link-layer address before, or a received checkpoint covers that claim. A
//     guest that asks whether anybody has an address does not claim it yet.
//   - Multicast is compared like any datagram: what the guests do not both say
//     (reports after a random time, say) waits for a checkpoint.
//   - Everything else (other EtherTypes, malformed headers, PPP's own packets)
//     waits for the next checkpoint. One is asked for after the comparison's
//     Timeout.
//
// What leaves may differ from what the guest gave in its acknowledgment number,
// window, SACK blocks and timestamp, with the checksum: see package compare.
//
// What guests answer to the data of a SYN (TCP Fast Open, RFC 7413) leaves when the client has
// answered their SYN|ACK, and no sooner: by that answer the secondary learns the number under which it
// is compared. A SYN of Multipath TCP, and data with a SYN that the guests send, wait for the checkpoint.
//
// A flow whose guests never agree is not compared for a while; it leaves with the
// checkpoints, one of which is asked for (event.CausePace) when some of it waits and
// the last is long enough ago.
//
// With a [Gate] nothing leaves to the network while that is shut, on either side.
// Without one a side that has lost its right to speak does not know.
//
// # Without a connection
//
// The connection between the two sides may break, or stall, on its own. Then
// nothing can be compared: the guests are not told the same any more. The primary
// holds its guest's output and asks for a checkpoint as soon as there is some. When
// there is a new connection the primary asks for a checkpoint at once, and compares
// again from that checkpoint on.
//
// # After a failover
//
// The side that goes on talks to the network alone. A secondary that does so
// translates the connections that it opened with other sequence numbers than the
// primary's for as long as they live.
//
// A primary that has gone on can be protected again: the same Primary serves the
// next session, with a new Secondary on the other side. A secondary that has gone
// on becomes a Primary then, by [Secondary.Promote], and the connections that are
// still translated outlive a second failover. The comparison has to know the window
// scales of the guest's connections. The Primary has them from the checkpoint that its
// side took over from, and from the handshakes since.
//
// A secondary that takes over tells the network where the guest is now: it knows the
// guest's addresses from the frames of both guests. [Announce] and [Neighbors] are for
// hosts that do not use the rest of this package.
package proxy
