package compare

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/gocolo/lockstep/internal/packet"
)

// Config configures an [Engine]. The zero value is usable.
type Config struct {
	// Strict makes the engine do what colo-compare of QEMU 7.2 does, its
	// mistakes included. Of the other fields only Timeout, Scan, MaxQueue and
	// Marks have a meaning then.
	Strict bool

	// Timeout is how long a packet may wait for its twin before a checkpoint
	// is asked for. Zero is 3 s (colo-compare's compare_timeout).
	Timeout time.Duration

	// Scan is how often that is looked at. Zero is 1 s (expired_scan_cycle).
	Scan time.Duration

	// MaxQueue is how many packets of one side may wait on one connection when
	// another one comes, before a checkpoint is asked for. Zero is 1024 (max_queue_size). More of
	// the primary's are held all the same; more of the secondary's are dropped,
	// and the connection waits for the checkpoint.
	MaxQueue int

	// MaxBytes bounds the memory for waiting packets. Zero is 64 MiB. At half
	// of it a checkpoint is asked for, and the secondary's packets are dropped;
	// at the limit the primary's are not taken.
	MaxBytes int

	// MaxConns bounds the number of connections. Zero is 16384. Idle ones are
	// forgotten first; if there is none, packets of new connections wait for
	// a checkpoint, which is asked for.
	MaxConns int

	// Idle is after how long a connection without waiting packets is
	// forgotten. Zero is one hour.
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

	// CompareARP compares ARP, and of neighbour discovery what hosts send, by
	// whose address they say is whose: such a message leaves once the secondary's
	// guest has said that too, in whatever message, or a checkpoint covers that the
	// primary's has. Without it ARP cannot be compared, and neighbour discovery is
	// like other ICMPv6.
	CompareARP bool

	// Cross is how long two datagrams of one flow, of which each guest has sent
	// another one first, may wait for their equals before a checkpoint is asked
	// for. Zero is 20 ms. Eight may wait so; datagrams that can be seen to be two
	// answers to the same do not.
	Cross time.Duration

	// PatientAcks makes a segment whose data agrees, but which acknowledges
	// more than the secondary's guest has, wait for that guest until Timeout.
	// Without it a checkpoint is asked for at once, as QEMU does. Guests that
	// are not in step to the microsecond want it.
	PatientAcks bool

	// AckTimeout is how long, with PatientAcks, such a segment waits at the head
	// of its connection before a checkpoint is asked for: a guest that had no
	// room for some input will not acknowledge it soon. Zero is Timeout.
	AckTimeout time.Duration

	// LowerAcks lets a segment whose data agrees leave with a lower acknowledgment
	// number, where it acknowledges more than the secondary's guest has, and a
	// window and SACK blocks that suit both guests; the rest follows when that guest
	// has caught up. It implies that segments are changed before they leave, and
	// that acknowledgments without data are merged. Where the window's scale is not
	// known, because the engine has not seen the connection begin, segments wait as
	// PatientAcks says.
	//
	// It also lets the covered part of a segment leave by itself when the secondary's
	// guest repeats it. Both make packets, so more may leave than were given.
	LowerAcks bool

	// Adaptive sets a flow apart whose guests never agree, because what they say is
	// random: after Strikes epochs with a divergence it is not compared for a while,
	// its output leaves with the checkpoints, and one is asked for when some waits
	// and the last is Pace ago. It is tried again after Retry, then after twice
	// that, and so on up to 32 times. A new flow of a service whose flows were set
	// apart is so from its first data on.
	//
	// Without a Pace it is what the last checkpoint took, from its mark to its
	// receipt, and at most 5 ms: so its clients wait no longer than if each
	// difference asked for a checkpoint. With a Pace above that, the host trades
	// their latency for less to do.
	Adaptive bool
	Strikes  uint8         // zero: 3
	Pace     time.Duration // zero: see above
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
	return c
}

// A Reason says why a checkpoint is wanted.
type Reason uint8

// The reasons.
const (
	ReasonNone     Reason = iota
	ReasonData            // the bytes differ
	ReasonPosition        // the secondary's stream has a hole where the primary's has bytes
	ReasonAck             // the data agrees, the primary acknowledges more
	ReasonFlags           // SYN, FIN or RST against something else
	ReasonPacket          // no packet of the secondary's equals the primary's
	ReasonTimeout         // a packet has waited too long
	ReasonLimit           // too many packets, bytes or connections
	ReasonOptions         // SYNs with other options: MSS, window scale, SACK, timestamps
	ReasonPorts           // two flows that differ only in the port that the guest chose
	ReasonPace            // nothing differs: output of flows that are set apart waits
	reasons
)

var reasonNames = [reasons]string{"none", "data", "position", "ack", "flags", "packet", "timeout", "limit", "options", "ports", "pace"}

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

// fits reports whether f is as long as its virtio-net header at least.
func (f *Frame) fits() bool { return f.VNetHdr >= 0 && f.VNetHdr <= len(f.Data) }

// A Result says what follows from a call. The slices in it belong to the engine
// (or are the frame that was passed in) and are valid until the next call.
type Result struct {
	Release  []Frame // may leave now, in this order
	Diverged bool    // a checkpoint is wanted
	Reason   Reason  // why, if so
	Flow     Flow    // whose packets differ, if it is one connection's that do
	Notes    []Note  // of flows: what has changed about them
	Full     bool    // the frame was not taken: there is no memory for it; pass it again after a release
}

// A Flow names the packets from one address to another. Without ports (what is
// no TCP or UDP, fragments) they are zero. The zero Flow is none.
type Flow struct {
	Src, Dst netip.AddrPort
	Proto    uint8  // IANA's protocol number
	VLAN     uint16 // 0: untagged
}

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

// Stats counts since the engine was made, except for what is "now".
type Stats struct {
	Matched    uint64 // packets of the primary's that left because the secondary said the same
	Passed     uint64 // that left uncompared
	Checkpoint uint64 // that left because a checkpoint covered them
	Diverged   [reasons]uint64
	Lowered    uint64 // acknowledgments that left in addition, with a part of a held one's news
	Merged     uint64 // acknowledgments that others have said all of, and that did not leave themselves
	SetApart   uint64 // times that a flow was set apart
	Recovered  uint64 // divergences after which the connection went on without a checkpoint: false ones
	Stale      uint64 // packets of the secondary's of an older epoch
	Dropped    uint64 // packets of the secondary's that were not wanted

	Held, HeldBytes int // now: waiting packets of both sides, and the memory for them
	Conns           int // now
	Apart           int // now: flows that are set apart
}
