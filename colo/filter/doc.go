// Package filter carries a guest's packets: over a stream between hosts, and
// past the checkpoints.
//
// [Conn] is the framing in which QEMU's filters and colo-compare exchange
// packets, with epoch markers between the packets as an option among peers of
// this library.
//
// [Buffer] holds the guest's output until the checkpoint that covers it is
// received. Continuous checkpointing needs no other part of this package. The
// packets that it holds travel with the checkpoints, so that a secondary that takes
// over sends all that its guest remembers to have sent.
//
// [Chain] is the filters between a guest's NIC and its network, in the order and
// with the properties that QEMU gives them: [Mirror] copies the primary's input,
// by way of an [Outbox], and an [Inlet] gives it to the secondary's guest, each
// packet in its epoch; [Redirector] takes packets elsewhere and
// [Chain.Serve] brings them in; [Rewriter] makes the secondary's guest fit into
// the primary's TCP connections; [Dump] writes a pcap file. Package tap is a
// network for its end. An [Edge] in front of it carries the connections that a
// Rewriter translates through the next failover.
//
// Frames may begin with a virtio-net header of 10, 12, 20 or 24 bytes, and be what
// a guest with offloads sends: of up to 64 KiB, to be cut by the device
// (VIRTIO_NET_F_GUEST_TSO4 and its like), with a checksum that the device
// completes. This package carries them unchanged and whole. How many buffers a frame takes
// in the ring of the guest (num_buffers) is decided by the device that puts it there.
//
// A host that protects a guest's NIC wants package proxy, which puts these parts
// and the comparison together. These parts on their own are for hosts that exchange
// packets with the filters of a QEMU, or that need another order.
package filter
