package compare_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// kindsISN is the initial number of the connection of these tests: its numbers wrap in its
// first bytes.
const kindsISN = 1<<32 - 4

// kindsSegment is a segment of that connection, at a place of its stream.
func kindsSegment(at uint32, flags byte, opts, data string) []byte {
	return sealed(wireSegment(1, kindsISN+1+at, 501, flags, opts, data))
}

func with(f []byte, at int, b ...byte) []byte {
	f = slices.Clone(f)
	copy(f[at:], b)
	return sealed(f)
}

// kindsFragments cuts a datagram into fragments of IPv4 that begin at these places and are
// n bytes long.
func kindsFragments(n int, places ...int) (list [][]byte) {
	d := wireDatagram(53, 5000, strings.Repeat("fragment", 6))[34:]
	for _, at := range places {
		end := min(at+n, len(d))
		more := uint16(0x2000)
		if end == len(d) {
			more = 0
		}
		list = append(list, wireIPv4(17, more|uint16(at/8), d[at:end]))
	}
	return list
}

// kindsQuoting is an ICMP error that quotes so many bytes of a segment.
func kindsQuoting(n int) []byte {
	q := kindsSegment(0, wireACK|wirePSH, wireTimes(1, 2), "quoted")[14:]
	f := wireIPv4(1, 0, append([]byte{3, 4, 0, 0, 0, 0, 5, 0}, q[:n]...))
	binary.BigEndian.PutUint16(f[36:], packet.Checksum(f[34:]))
	return f
}

// kindsVLAN puts a frame into VLANs, the outer one first.
func kindsVLAN(f []byte, tags string) []byte { return slices.Concat(f[:12], []byte(tags), f[12:]) }

// A kind is what both guests say.
type kind struct {
	what  string
	say   [][]byte
	waits int  // of these, how many leave with the checkpoint only, though both guests have said all
	alone int  // how many leave before the other guest has said anything: what it has covered already
	again bool // what is repeated while it waits leaves once
}

func kinds() []kind {
	one := func(f ...[]byte) [][]byte { return f }
	seg := func(opts, data string) [][]byte { return one(kindsSegment(0, wireACK|wirePSH, opts, data)) }
	ext := func(first byte, headers string) [][]byte {
		return one(sealed(extended([]byte(headers), first, kindsSegment(0, wireACK|wirePSH, "", "abcd")[34:])))
	}
	return []kind{
		{what: "data over the wrap", say: seg("", "abcdefgh")},
		{what: "option of length 0", say: seg("\x08\x00\x00\x00", "abcd")},
		{what: "option of length 1", say: seg("\x08\x01\x00\x00", "abcd")},
		{what: "option beyond the header", say: seg("\x01\x01\x08\x0a", "abcd")},
		{what: "option that ends in the data", say: seg("\x08\x0a\x00\x01", "\x00\x01\x00\x00\x00\x02abcd")},
		{what: "timestamps twice", say: seg(wireTimes(5, 6)+wireTimes(7, 8), "abcd")},
		{what: "timestamps of a wrong length", say: seg("\x08\x09\x00\x00\x00\x00\x00\x00\x00\x01\x01\x01", "abcd")},
		{what: "timestamps that wrap", say: one(kindsSegment(0, wireACK|wirePSH, wireTimes(1<<32-1, 1), "ab"), kindsSegment(2, wireACK|wirePSH, wireTimes(0, 1), "cd"), kindsSegment(4, wireACK|wirePSH, wireTimes(1, 1), "ef"))},
		{what: "SACK over the wrap", say: seg(sackOption(1<<32-8, 4), "abcd")},
		{what: "SACK whose edges are swapped", say: seg(sackOption(600, 550, 560, 560), "abcd")},
		{what: "SACK of more than there is room for", say: seg("\x01\x01\x05\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "abcd")},
		{what: "SACK and nothing else", say: one(kindsSegment(0, wireACK, sackOption(600, 700), ""))},
		{what: "zero window", say: one(with(kindsSegment(0, wireACK, "", ""), 48, 0, 0)), alone: 1},
		{what: "zero window and a window again", say: one(with(kindsSegment(0, wireACK, "", ""), 48, 0, 0), kindsSegment(0, wireACK, "", "")), alone: 1},
		{what: "probe of a zero window, repeated", say: one(kindsSegment(0, wireACK, "", "a"), kindsSegment(0, wireACK, "", "a"), kindsSegment(0, wireACK, "", "a")), again: true},
		{what: "keepalive", say: one(kindsSegment(0, wireACK, "", "ab"), kindsSegment(1, wireACK, "", ""))},
		{what: "keepalive with the byte", say: one(kindsSegment(0, wireACK, "", "ab"), kindsSegment(1, wireACK, "", "b"))},
		{what: "keepalive with another byte", say: one(kindsSegment(0, wireACK, "", "ab"), kindsSegment(1, wireACK, "", "\x00"))},
		{what: "keepalive before the first byte", say: one(kindsSegment(1<<32-1, wireACK, "", ""), kindsSegment(1<<32-1, wireACK, "", "\x00")), alone: 1},
		{what: "RST at the place", say: one(kindsSegment(0, wireRST, "", ""))},
		{what: "RST|ACK at the place", say: one(kindsSegment(0, wireRST|wireACK, "", ""))},
		{what: "RST in the window", say: one(kindsSegment(900, wireRST, "", ""))},
		{what: "RST|ACK beyond the window", say: one(kindsSegment(1<<20, wireRST|wireACK, "", ""))},
		{what: "RST before", say: one(kindsSegment(1<<31, wireRST, "", ""))},
		{what: "RST with data", say: one(kindsSegment(0, wireRST|wireACK, "", "why")), waits: 1},
		{what: "RST after data", say: one(kindsSegment(0, wireACK, "", "abcd"), kindsSegment(4, wireRST|wireACK, "", ""))},
		{what: "FIN", say: one(kindsSegment(0, wireFIN|wireACK, "", ""))},
		{what: "FIN over the wrap, repeated with data", say: one(kindsSegment(0, wireFIN|wireACK, "", "abcd"), kindsSegment(0, wireFIN|wireACK, "", "abcd"))},
		{what: "FIN repeated without its data", say: one(kindsSegment(0, wireFIN|wireACK, "", "abcd"), kindsSegment(4, wireFIN|wireACK, "", ""))},
		{what: "FIN repeated with more data", say: one(kindsSegment(0, wireFIN|wireACK, "", "abcd"), kindsSegment(0, wireFIN|wireACK, "", "abcdef"))},
		{what: "data behind a FIN", say: one(kindsSegment(0, wireFIN|wireACK, "", "abcd"), kindsSegment(5, wireACK, "", "ef")), waits: 1},
		{what: "FIN without ACK", say: one(kindsSegment(0, wireFIN, "", "abcd"))},
		{what: "urgent over the wrap", say: one(with(kindsSegment(0, wireACK|0x20, "", "abcdefgh"), 52, 0, 6))},
		{what: "urgent behind the data", say: one(with(kindsSegment(0, wireACK|0x20, "", "ab"), 52, 0xff, 0xff))},
		{what: "urgent of 0", say: one(with(kindsSegment(0, wireACK|0x20, "", "ab"), 52, 0, 0))},
		{what: "ECN: ECE", say: one(kindsSegment(0, wireACK|0x40, "", "abcd"))},
		{what: "ECN: CWR and NS", say: one(with(kindsSegment(0, wireACK|0x80, "", "abcd"), 46, 0x51))},
		{what: "ECN: marked by IP", say: one(with(kindsSegment(0, wireACK, "", "abcd"), 15, 3))},
		{what: "no flags", say: one(kindsSegment(0, 0, "", "abcd"))},
		{what: "all flags", say: one(kindsSegment(0, 0xff, "", "abcd")), waits: 1},
		{what: "SYN with shift 15", say: one(wireSegment(2, kindsISN, 501, wireSYN|wireACK, "\x01\x03\x03\x0f", ""))},
		{what: "SYN with shift 255", say: one(wireSegment(2, kindsISN, 501, wireSYN|wireACK, "\x01\x03\x03\xff", ""))},
		{what: "SYN with shift twice", say: one(wireSegment(2, kindsISN, 501, wireSYN|wireACK, "\x01\x03\x03\x07\x01\x03\x03\x0f", ""))},
		{what: "SYN with shift of length 4", say: one(wireSegment(2, kindsISN, 501, wireSYN|wireACK, "\x03\x04\x07\x07", ""))},
		{what: "SYN with data", say: one(wireSegment(2, kindsISN, 501, wireSYN|wireACK, "", "abcd")), waits: 1},
		{what: "SYN on an open connection", say: one(kindsSegment(100, wireSYN, "", ""))},
		{what: "IPv4 with a record route", say: one(func() []byte {
			f := wireIPv4(6, 0, append([]byte("\x07\x07\x04\x00\x00\x00\x00\x00"), kindsSegment(0, wireACK, "", "abcd")[34:]...))
			f[14] = 0x47
			return sealed(f)
		}())},
		{what: "IPv4 with an option of length 0", say: one(func() []byte {
			f := wireIPv4(6, 0, append([]byte("\x07\x00\x00\x00"), kindsSegment(0, wireACK, "", "abcd")[34:]...))
			f[14] = 0x46
			return sealed(f)
		}())},
		{what: "fragments", say: kindsFragments(24, 0, 24, 48)},
		{what: "fragments, the last first", say: kindsFragments(24, 48, 24, 0)},
		{what: "fragments that overlap", say: kindsFragments(24, 0, 16, 32)},
		{what: "the same fragment twice", say: kindsFragments(24, 0, 0, 24, 48)},
		{what: "tiny fragments", say: kindsFragments(8, 0, 8, 16, 24, 32, 40, 48)},
		{what: "a fragment that ends behind 64 KiB", say: one(wireIPv4(17, 0x1fff, make([]byte, 100)))},
		{what: "a fragment of no data", say: one(wireIPv4(6, 0x2000, nil))},
		{what: "a TCP header in two fragments", say: one(wireIPv4(6, 0x2000, kindsSegment(0, wireACK, "", "abcd")[34:42]), wireIPv4(6, 1, kindsSegment(0, wireACK, "", "abcd")[42:]))},
		{what: "IPv6 hop-by-hop", say: ext(0, "\x06\x00\x01\x04\x00\x00\x00\x00")},
		{what: "IPv6 routing, with segments left", say: ext(43, "\x06\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x09"), waits: 1},
		{what: "IPv6 twenty extensions", say: ext(60, strings.Repeat("\x3c\x00\x01\x04\x00\x00\x00\x00", 19)+"\x06\x00\x01\x04\x00\x00\x00\x00")},
		{what: "IPv6 hop-by-hop behind another", say: ext(60, "\x00\x00\x01\x04\x00\x00\x00\x00\x06\x00\x01\x04\x00\x00\x00\x00")},
		{what: "IPv6 extension that ends behind the packet", say: ext(60, "\x06\xff\x01\x04\x00\x00\x00\x00"), waits: 1},
		{what: "IPv6 tiny fragments", say: one(v6(44, []byte("\x06\x00\x00\x01\x00\x00\x00\x01\x00\x50\x00\x01\xff\xff\xff\xfd")), v6(44, []byte("\x06\x00\x00\x08\x00\x00\x00\x01abcdefgh")))},
		{what: "IPv6 fragments, the last first", say: one(v6(44, []byte("\x11\x00\x00\x08\x00\x00\x00\x01abcdefgh")), v6(44, []byte("\x11\x00\x00\x01\x00\x00\x00\x01\x00\x35\x13\x88\x00\x10\x00\x00")))},
		{what: "IPv6 of no next header", say: one(v6(59, []byte("abcd")))},
		{what: "IPv6 jumbo", say: one(v6(0, []byte("\x06\x00\xc2\x04\x00\x01\x00\x00"))), waits: 1},
		{what: "error that quotes all", say: one(kindsQuoting(58))},
		{what: "error that quotes the ports", say: one(kindsQuoting(28))},
		{what: "error that quotes half a port", say: one(kindsQuoting(21))},
		{what: "error that quotes half a header of IP", say: one(kindsQuoting(10))},
		{what: "error that quotes nothing", say: one(kindsQuoting(0))},
		{what: "VLAN", say: one(kindsVLAN(kindsSegment(0, wireACK, "", "abcd"), "\x81\x00\x00\x05"))},
		{what: "VLAN in VLAN", say: one(kindsVLAN(kindsSegment(0, wireACK, "", "abcd"), "\x88\xa8\x00\x05\x81\x00\x00\x06"))},
		{what: "VLAN in VLAN in VLAN", say: one(kindsVLAN(kindsSegment(0, wireACK, "", "abcd"), "\x88\xa8\x00\x05\x81\x00\x00\x06\x81\x00\x00\x07")), waits: 1},
		{what: "a tag and nothing behind it", say: one(append(make([]byte, 12), 0x81, 0, 0, 5)), waits: 1},
		{what: "half a tag", say: one(append(make([]byte, 12), 0x81, 0, 0)), waits: 1},
	}
}

// A kindsRun has a connection, and a secondary's guest that has said as much as the primary's.
type kindsRun struct {
	*rig
	vnet int
	left [][]byte
}

func newKindsRun(t *testing.T, vnet int) *kindsRun {
	x := &kindsRun{rig: newRig(t, everything()), vnet: vnet}
	x.checkpoint(0)
	syn := sealed(wireSegment(1, kindsISN, 501, wireSYN|wireACK, wireMSS+wireSACKOK+wireWindow7, ""))
	x.primary(syn)
	x.secondary(syn)
	x.left = nil
	return x
}

func (x *kindsRun) take(r compare.Result) {
	for _, f := range r.Release {
		x.left = append(x.left, bytes.Clone(f.Data[f.VNetHdr:]))
	}
}

func (x *kindsRun) primary(f []byte) { x.take(x.Primary(wired(x.vnet, bytes.Clone(f)), x.now)) }

func (x *kindsRun) secondary(f []byte) { x.take(x.Secondary(wired(x.vnet, bytes.Clone(f)), x.now)) }

// pass lets time pass, in the steps of a host's clock.
func (x *kindsRun) pass(d time.Duration) {
	for end := x.now.Add(d); x.now.Before(end); {
		x.now = x.now.Add(5 * time.Millisecond)
		x.take(x.Tick(x.now))
	}
}

// end makes a checkpoint, after which nothing must be held.
func (x *kindsRun) end(what string) {
	x.t.Helper()
	x.take(x.checkpoint(1))
	x.pass(50 * time.Millisecond)
	if s := x.Stats(); s.Held != 0 || s.HeldBytes != 0 {
		x.t.Errorf("%s: %d packets are held after the checkpoint", what, s.Held)
	}
}

// Packets of all kinds, right and wrong, at numbers that wrap. Where both guests say the same
// of them, each leaves once and as it is, at once or with the checkpoint. Where only the
// primary's guest says it, or the other says something else, it waits for the checkpoint.
func TestPacketsOfEveryKindLeaveOnceAndCovered(t *testing.T) {
	for _, c := range append(kinds(), wrappedKinds()...) {
		for _, vnet := range []int{0, 12} {
			what := fmt.Sprintf("%s, header of %d bytes", c.what, vnet)
			for _, first := range []string{"the primary", "the secondary"} {
				x := newKindsRun(t, vnet)
				for _, f := range c.say {
					if first == "the primary" {
						x.primary(f)
						x.pass(3 * time.Millisecond)
						x.secondary(f)
					} else {
						x.secondary(f)
						x.pass(3 * time.Millisecond)
						x.primary(f)
					}
					x.pass(300 * time.Millisecond)
				}
				if n := len(c.say) - len(x.left); n != c.waits {
					t.Errorf("%s, %s first: %d of %d wait, want %d", what, first, n, len(c.say), c.waits)
				}
				x.end(what)
				slices.SortFunc(x.left, bytes.Compare)
				said := slices.SortedFunc(slices.Values(c.say), bytes.Compare)
				if !slices.EqualFunc(x.left, said, bytes.Equal) {
					t.Errorf("%s, %s first: %x leave, and %x was said", what, first, x.left, said)
				}
			}

			x := newKindsRun(t, vnet)
			for _, f := range c.say {
				x.primary(f)
			}
			if len(x.left) != c.alone {
				t.Errorf("%s: %d leave, want %d, and the other guest has said nothing", what, len(x.left), c.alone)
			}
			x.end(what)
			if n := len(x.left); n < len(c.say) && !c.again {
				t.Errorf("%s: %d of %d leave with the checkpoint", what, n, len(c.say))
			}

			f := c.say[0]
			var p packet.Packet
			if p.Parse(f); len(c.say) > 1 || p.Kind != packet.IP4 && p.Kind != packet.IP6 || p.IsTCP() && len(p.TCP().Payload()) == 0 || p.End == p.L4 {
				continue
			}
			x = newKindsRun(t, vnet)
			other := bytes.Clone(f)
			other[p.End-1] ^= 0x10
			x.primary(f)
			x.secondary(sealed(other))
			x.pass(300 * time.Millisecond)
			if len(x.left) > 0 {
				t.Errorf("%s: it leaves, and the other guest has said something else", what)
			}
			x.end(what)
		}
	}
}

// inPieces cuts a segment of IPv4 into two fragments, the first of which has n bytes of its data.
func inPieces(f []byte, n int) [2][]byte {
	at := 20 + n
	return [2][]byte{wireIPv4(6, 0x2000, f[34:34+at]), wireIPv4(6, uint16(at/8), f[34+at:])}
}

// A guest may send a part of its stream in fragments, which are compared one by one, and the rest in
// whole segments. That a part was missing would be seen by the timeout alone.
func TestWholeSegmentsBehindOnesInFragmentsDoNotWaitForTheTimeout(t *testing.T) {
	whole := func(at uint32, data string) []byte { return kindsSegment(at, wireACK, "", data) }
	cut := inPieces(whole(0, "twenty eight bytes, in two.."), 12)
	x := newKindsRun(t, 0)
	both := func(f []byte) (why compare.Reason) {
		r := x.Primary(wired(0, f), x.now)
		x.take(r)
		why = r.Reason
		x.secondary(f)
		return why
	}
	both(cut[0])
	both(cut[1])
	if len(x.left) != 2 {
		t.Fatalf("%d fragments of two have left that both have said", len(x.left))
	}
	if why := both(whole(28, "abcd")); why != compare.ReasonPosition {
		t.Errorf("a segment behind them: %v, want a checkpoint because of the position", why)
	}
	x.take(x.checkpoint(1))
	both(whole(32, "efgh"))
	x.primary(whole(28, "abcd"))
	if len(x.left) != 5 {
		t.Errorf("behind the checkpoint %d have left, want 5", len(x.left))
	}

	// A checkpoint that comes right behind the fragments does not know where they end.
	cut = inPieces(whole(36, "twenty eight bytes, in two.."), 12)
	x.primary(cut[0])
	x.primary(cut[1])
	x.take(x.checkpoint(2))
	if why := both(whole(64, "ijkl")); why != compare.ReasonPosition {
		t.Errorf("behind the second checkpoint: %v, want a checkpoint because of the position", why)
	}
	x.take(x.checkpoint(3))
	both(whole(68, "mnop"))
	if len(x.left) != 9 {
		t.Errorf("behind the third checkpoint %d have left, want 9", len(x.left))
	}
}
