package compare

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// Config configures an [Engine]. The zero value is usable.
type Config struct {
	// Strict makes the engine do what colo-compare of QEMU 7.2 does, with its mistakes. Of
	// the other fields only Timeout, Scan, MaxQueue and Marks are used then.
	Strict bool

	// Timeout is how long a packet may wait for its twin before a checkpoint
	// is asked for. Zero is 3 s (colo-compare's compare_timeout).
	Timeout time.Duration

	// Scan is how often the engine looks for such packets. Zero is 1 s
	// (expired_scan_cycle).
	Scan time.Duration

	// MaxQueue is how many packets of one side may wait on one connection before the next
	// one makes the engine ask for a checkpoint. Zero is 1024 (max_queue_size). Beyond it
	// the primary's packets are held all the same; the secondary's are dropped, and the
	// connection waits for the checkpoint.
	MaxQueue int

	// MaxBytes bounds the memory for waiting packets, in bytes. Zero is 64 MiB. At half
	// of it the engine asks for a checkpoint and drops the secondary's packets; at all of
	// it, it takes no more packets of the primary. A packet takes up to twice its length.
	// As much memory again may be kept for later packets.
	MaxBytes int

	// MaxConns bounds the number of connections. Zero is 16384; more than 16,777,215 counts as
	// that many. Connections without
	// waiting packets are forgotten first, those idle longest before others; if there is
	// none, packets of new connections wait for a checkpoint, and the engine asks for one.
	MaxConns int

	// Idle is the time after which a connection without waiting packets is forgotten. Zero
	// is one hour.
	Idle time.Duration

	// Marks says that the secondary's stream has epoch markers, for which
	// SecondaryMark is called. Without them the secondary's packets count from
	// Loaded on.
	Marks bool

	// HoldUncompared holds what cannot be compared until the next checkpoint,
	// instead of letting it pass: frames of an unknown EtherType, or that are
	// malformed or too long. (IP packets whose transport header is malformed are
	// held without it, too.)
	HoldUncompared bool

	// CompareVLAN compares IP within VLANs (802.1Q, 802.1ad) and within PPP over
	// Ethernet like other IP, each VLAN and session by itself. QEMU lets it pass.
	CompareVLAN bool

	// CompareARP compares ARP, and those messages of neighbour discovery that hosts send,
	// by the pair of addresses that they claim: such a message leaves once the secondary's
	// guest has claimed that pair too, in any message, or once a checkpoint covers that
	// the primary's guest has. A question whether anybody has an address claims nothing, and
	// leaves once both have asked it. Without CompareARP, ARP is not compared, and neighbour
	// discovery is compared as other ICMPv6 is.
	CompareARP bool

	// Cross is how long packets of one flow may wait for their equals when the guests seem
	// to have sent the same datagrams in different orders. After it the engine asks for a
	// checkpoint. Zero is 20 ms. Up to eight packets wait so; two that are evidently two
	// answers to one question do not wait. Where each guest has begun a flow of datagrams
	// to one port that the other has not, or asks for an address of IPv6 that the other has not
	// asked for, Cross is also how long the engine waits for the other guest to do so too; two
	// flows that ask the same question from two ports, or temporary addresses, do not wait.
	Cross time.Duration

	// PatientAcks makes a segment whose data agrees wait until Timeout if it acknowledges
	// more than the secondary's guest has. Without it the engine asks for a checkpoint at
	// once, as QEMU does. It suits guests that are not in step to the microsecond, and no
	// real ones are.
	PatientAcks bool

	// AckTimeout is how long, with PatientAcks, such a segment waits at the head
	// of its connection before a checkpoint is asked for: a guest that had no
	// room for some input will not acknowledge it soon. Zero is Timeout.
	AckTimeout time.Duration

	// LowerAcks lets a segment whose data agrees leave before the secondary's guest has
	// acknowledged as much: with a lower acknowledgment number, and a window and SACK
	// blocks that hold for both guests. The rest follows when the secondary's guest has
	// caught up. Segments are changed before they leave then, and acknowledgments without
	// data are merged. Where the scale of the window is unknown, because the engine has
	// not seen the connection begin and was not told ([Comparer.AdoptScales]), segments wait
	// as with PatientAcks, and have the window that the primary's guest has given them.
	//
	// It also lets the covered part of a segment leave by itself when the secondary's
	// guest repeats it, or has said no more of the segment for 5 ms. Both make packets, so
	// more may leave than were given.
	//
	// And a segment that repeats what waits already does not leave too, nor one that
	// repeats what has left before the peer can have said anything of it, as far as
	// [Engine.Inbound] is told what the peer says.
	LowerAcks bool

	// Adaptive sets a flow apart whose guests never agree, because what they send is
	// random. After Strikes epochs with a divergence the flow is not compared for a while:
	// its output leaves with the checkpoints, and the engine asks for one when output
	// waits and the last mark is Pace ago. It compares the flow again after Retry,
	// then after twice that, and so on up to 32 times Retry. A new flow of a service whose
	// flows were set apart is set apart with its first data.
	//
	// With a Pace of zero it asks when the secondary's guest runs from the last checkpoint,
	// so that clients wait no longer than if each difference asked for one. If other flows
	// are compared meanwhile, or clients usually send several requests at a time, the
	// engine first waits for these, at most 5 ms: about as long as the secondary's packets
	// usually come after the primary's. A Pace makes clients wait longer and the host make
	// fewer checkpoints.
	Adaptive bool
	Strikes  uint8         // zero: 3
	Pace     time.Duration // zero: see Adaptive
	Retry    time.Duration // zero: 1 s

	// ReleaseRetransmits lets a segment that repeats what has been compared
	// leave at once. Without it, it waits for the next packet that the
	// secondary's guest sends on that connection, as with QEMU.
	ReleaseRetransmits bool
}

func (c Config) withDefaults() Config {
	def := func(p *time.Duration, d time.Duration) {
		if *p <= 0 {
			*p = d
		}
	}
	num := func(p *int, d int) {
		if *p <= 0 {
			*p = d
		}
	}
	def(&c.Timeout, 3*time.Second)
	def(&c.Scan, time.Second)
	def(&c.Idle, time.Hour)
	def(&c.AckTimeout, c.Timeout)
	def(&c.Cross, 20*time.Millisecond)
	def(&c.Retry, time.Second)
	if c.Strikes == 0 {
		c.Strikes = 3
	}
	c.Strikes = min(c.Strikes, 50)
	if c.PatientAcks {
		c.Scan = min(c.Scan, c.AckTimeout)
	}
	num(&c.MaxQueue, 1024)
	num(&c.MaxBytes, 64<<20)
	num(&c.MaxConns, 16384)
	c.MaxConns = min(c.MaxConns, maxConns)
	return c
}

// A Reason says why a checkpoint is wanted.
type Reason uint8

// The reasons for a checkpoint. ReasonNone says that none is wanted.
const (
	ReasonNone     Reason = iota
	ReasonData            // the bytes differ
	ReasonPosition        // the secondary's stream has a hole where the primary's has bytes
	ReasonAck             // the data agrees, but the primary's guest acknowledges more
	ReasonFlags           // one side has a SYN, FIN or RST where the other has not
	ReasonPacket          // no packet of the secondary's equals the primary's
	ReasonTimeout         // a packet has waited too long
	ReasonLimit           // too many packets, bytes or connections
	ReasonOptions         // two SYNs differ in options, or in whether marks of congestion are understood
	ReasonPorts           // the guests have begun flows that differ only in the port, or the address in its network, that each chose
	ReasonPace            // nothing differs, but output of flows that are set apart waits
	reasons
)

var reasonNames = [reasons]string{"none", "data", "position", "ack", "flags", "packet", "timeout", "limit", "options", "ports", "pace"}

// String returns the reason in a word, such as "timeout"; "unknown" for what is none.
func (r Reason) String() string {
	if r < reasons {
		return reasonNames[r]
	}
	return "unknown"
}

// A Frame is an Ethernet frame. One with a VNetHdr that is negative or beyond the end
// of Data is malformed: the engine never looks into it.
type Frame struct {
	Data    []byte
	VNetHdr int // the length of the virtio-net header that Data begins with, in bytes
}

// fits reports whether f is at least as long as its virtio-net header.
func (f *Frame) fits() bool { return f.VNetHdr >= 0 && f.VNetHdr <= len(f.Data) }

// A Result says what follows from a call. The slices in it belong to the engine
// (or are the frame that was passed in) and are valid until the next call.
type Result struct {
	Release  []Frame // may leave now, in this order
	Diverged bool    // a checkpoint is wanted
	Reason   Reason  // why, if so
	Flow     Flow    // the flow whose packets differ; zero if the reason is no single flow
	Notes    []Note  // the changes to flows
	Full     bool    // the frame was not taken: there is no memory for it; pass it again after a release
}

// A Flow names the packets from one address to another. Its ports are zero where the
// packets have none: protocols other than TCP and UDP, and fragments. The zero Flow names
// no flow.
type Flow struct {
	Src, Dst netip.AddrPort
	Proto    uint8  // IANA's protocol number
	VLAN     uint16 // 0: untagged
}

// String returns the two ends and the protocol number, such as "10.0.0.1:80 > 10.0.0.9:5000 proto 6";
// "-" for a Flow without addresses.
func (f Flow) String() string {
	if !f.Src.IsValid() {
		return "-"
	}
	return fmt.Sprintf("%v > %v proto %d", f.Src, f.Dst, f.Proto)
}

func flowOf(k *packet.Key) Flow {
	f := Flow{Proto: k.Proto, VLAN: k.VLAN}
	src, dst := netip.AddrFrom16(k.Src), netip.AddrFrom16(k.Dst)
	if k.Kind == packet.IP4 {
		src, dst = netip.AddrFrom4([4]byte(k.Src[:4])), netip.AddrFrom4([4]byte(k.Dst[:4]))
	}
	f.Src = netip.AddrPortFrom(src, uint16(k.Ports>>16))
	f.Dst = netip.AddrPortFrom(dst, uint16(k.Ports))
	return f
}

// Stats has counts since the engine was made, and a few present values, which are marked
// "now".
type Stats struct {
	Matched    uint64 // packets of the primary that left because the secondary's guest sent the same
	Passed     uint64 // packets that left uncompared
	Checkpoint uint64 // packets that left because a checkpoint covered them
	Diverged   [reasons]uint64
	Lowered    uint64 // acknowledgments that the engine made of a part of a held one, and let leave in addition
	Merged     uint64 // acknowledgments that did not leave themselves, because later packets told the peer all of them
	Relayed    uint64 // repetitions of either guest that have left, or parts of them, because the peer went on lacking them
	Repeated   uint64 // segments that did not leave themselves, because their bytes waited already, in segments that leave for them
	SetApart   uint64 // times that a flow was set apart
	Recovered  uint64 // divergences after which the connection went on without a checkpoint, and so were false
	Stale      uint64 // packets of the secondary that belong to an older epoch
	Dropped    uint64 // packets of the secondary that matched nothing, or for which the engine had no memory

	Held, HeldBytes int // now: waiting packets of both sides, and the memory for them
	Conns           int // now: connections that are followed
	Apart           int // now: flows that are set apart
}
