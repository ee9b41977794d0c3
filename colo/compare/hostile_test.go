// Tests of what a guest, or the peer, may send and when. The engine is set up as
// package proxy sets it up, but for lowered acknowledgments.

package compare_test

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

const (
	wireFIN, wireSYN, wireRST, wirePSH, wireACK = 1, 2, 4, 8, 16

	// Options of a SYN, and the timestamps that most segments carry.
	wireMSS     = "\x02\x04\x05\xb4"
	wireSACKOK  = "\x04\x02\x01\x01"
	wireWindow7 = "\x01\x03\x03\x07"
)

func wireTimes(value, echo uint32) string {
	b := append([]byte{1, 1, 8, 10}, make([]byte, 8)...)
	binary.BigEndian.PutUint32(b[4:], value)
	binary.BigEndian.PutUint32(b[8:], echo)
	return string(b)
}

// wireSegment returns a segment of the guest, 10.0.0.1:80, to a client.
func wireSegment(port uint16, seq, ack uint32, flags byte, opts, data string) []byte {
	h := make([]byte, 20)
	binary.BigEndian.PutUint16(h, 80)
	binary.BigEndian.PutUint16(h[2:], port)
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	h[12], h[13] = byte(20+len(opts))<<2, flags
	binary.BigEndian.PutUint16(h[14:], 1000)
	return wireIPv4(6, 0, append(append(h, opts...), data...))
}

func wireDatagram(sport, dport uint16, data string) []byte {
	h := make([]byte, 8)
	binary.BigEndian.PutUint16(h, sport)
	binary.BigEndian.PutUint16(h[2:], dport)
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(data)))
	return wireIPv4(17, 0, append(h, data...))
}

func wireIPv4(proto byte, fragment uint16, payload []byte) []byte {
	b := append(make([]byte, 12), 8, 0)
	h := make([]byte, 20)
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(h[6:], fragment)
	copy(h[12:], []byte{10, 0, 0, 1, 10, 0, 0, 2})
	return append(append(b, h...), payload...)
}

// proxied is an engine in the epoch after the initial synchronisation.
type proxied struct {
	*testing.T
	e   *compare.Engine
	now time.Time
}

func newProxied(t *testing.T) *proxied {
	x := &proxied{t, compare.NewEngine(compare.Config{
		Marks: true, PatientAcks: true, ReleaseRetransmits: true, AckTimeout: time.Second,
	}), time.Unix(1000, 0)}
	x.checkpoint(0)
	return x
}

func (x *proxied) mark(epoch uint64) {
	x.Helper()
	if err := x.e.Mark(epoch); err != nil {
		x.Fatal(err)
	}
}

func (x *proxied) received(epoch uint64) string {
	x.Helper()
	r, err := x.e.Received(epoch)
	if err != nil {
		x.Fatal(err)
	}
	return wireShow(r)
}

func (x *proxied) checkpoint(epoch uint64) (left string) {
	x.Helper()
	x.mark(epoch)
	left = x.received(epoch)
	if _, err := x.e.SecondaryMark(epoch); err != nil {
		x.Fatal(err)
	}
	return left
}

func (x *proxied) p(frame []byte) string {
	return wireShow(x.e.Primary(compare.Frame{Data: frame}, x.now))
}
func (x *proxied) s(frame []byte) string {
	return wireShow(x.e.Secondary(compare.Frame{Data: frame}, x.now))
}

func (x *proxied) want(why, got, want string) {
	x.Helper()
	if got != want {
		x.Errorf("%s: %q, want %q", why, got, want)
	}
}

// open lets both guests accept a connection: the client's number is 500, theirs
// is 99.
func (x *proxied) open() {
	x.Helper()
	synack := wireSegment(1, 99, 501, wireSYN|wireACK, "", "")
	x.want("SYN|ACK of the primary's guest", x.p(synack), "")
	x.want("SYN|ACK of the secondary's guest", x.s(synack), "SYN")
}

// wireShow names what has left by its data, or its flags, or its acknowledgment
// number; ! is a wish for a checkpoint.
func wireShow(r compare.Result) string {
	var list []string
	for _, f := range r.Release {
		b, name := f.Data, "frame"
		switch {
		case len(b) >= 54 && b[23] == 6:
			h := b[34:]
			end := 14 + int(binary.BigEndian.Uint16(b[16:]))
			off := 34 + int(h[12]>>4)*4
			if off > end {
				name = "malformed"
				break
			}
			name = string(b[off:end])
			for _, s := range []string{"SYN", "FIN", "RST"} {
				if h[13]&map[string]byte{"SYN": wireSYN, "FIN": wireFIN, "RST": wireRST}[s] != 0 {
					name += s
				}
			}
			if name == "" {
				name = fmt.Sprint("ack", binary.BigEndian.Uint32(h[8:]))
			}
		case len(b) >= 42 && b[23] == 17:
			name = string(b[42:])
		}
		list = append(list, name)
	}
	if r.Diverged {
		list = append(list, "!"+r.Reason.String())
	}
	return strings.Join(list, " ")
}

// noPanic makes a panic a failure of the test and not of all tests.
func (x *proxied) noPanic() {
	if e := recover(); e != nil {
		x.Errorf("panic: %v", e)
	}
}

// A segment whose header is longer than itself keeps the offsets of the
// segment that came before it, of whatever connection.
func TestMalformedSegmentAfterLongOptions(t *testing.T) {
	long := wireSegment(9, 100, 501, wireACK|wirePSH, strings.Repeat("\x01", 40), "dat")
	bad := wireSegment(1, 100, 501, wireACK|wirePSH, "", "")
	bad[14+20+12] = 15 << 4
	good := wireSegment(1, 100, 501, wireACK|wirePSH, "", "dat")
	for _, side := range []string{"primary", "secondary"} {
		t.Run(side, func(t *testing.T) {
			x := newProxied(t)
			defer x.noPanic()
			say := x.p
			if side == "secondary" {
				say = x.s
			}
			say(long)
			say(bad)
			x.p(good)
			x.s(good)
		})
	}
}

// Fragments have no ports, and so are in the same queue as a connection
// between two ports 0.
func TestFragmentBesidePortZero(t *testing.T) {
	x := newProxied(t)
	defer x.noPanic()
	x.p(wireSegment(9, 100, 501, wireACK|wirePSH, strings.Repeat("\x01", 40), "dat"))
	x.p(wireIPv4(6, 0x2000, wireSegment(1, 100, 501, wireACK|wirePSH, "", "")[34:]))
	zero := wireSegment(0, 100, 501, wireACK|wirePSH, "", "x")
	binary.BigEndian.PutUint16(zero[34:], 0)
	x.p(zero)
	x.s(zero)
}

// A malformed packet leaves because a later segment agrees.
func TestMalformedSegmentIsNotReleasedAsMatched(t *testing.T) {
	x := newProxied(t)
	defer x.noPanic()
	x.open()
	x.want("", x.p(wireSegment(1, 100, 501, wireACK|wirePSH, "", "abcd")), "")
	x.want("", x.s(wireSegment(1, 100, 501, wireACK|wirePSH, "", "abcd")), "abcd")
	bad := wireSegment(1, 104, 501, wireACK|wirePSH, "", "EVIL")
	bad[14+20+12] = 15 << 4
	x.want("a malformed packet; the secondary's guest says nothing", x.p(bad), "")
	good := wireSegment(1, 104, 501, wireACK|wirePSH, "", "efgh")
	x.want("a good one behind it; the secondary's guest still says nothing", x.p(good), "")
	x.want("the secondary's guest says it", x.s(good), "efgh")
}

// What leaves between a mark and its receipt must be covered by what
// the old secondary's guest said: if the primary dies there, that guest goes on.
func TestFINBetweenMarkAndReceipt(t *testing.T) {
	x := newProxied(t)
	x.open()
	x.p(wireSegment(1, 100, 501, wireACK|wirePSH|wireFIN, "", "secret"))
	x.want("the guests differ", x.s(wireSegment(1, 100, 501, wireACK|wirePSH|wireFIN, "", "public")), "!data")
	x.mark(1)
	x.want("sent again, not received", x.p(wireSegment(1, 100, 501, wireACK|wirePSH|wireFIN, "", "secret")), "")
	if got := x.received(1); !strings.HasPrefix(got, "secretFIN") {
		t.Errorf("received: %q, and the first of the two was sent before the mark", got)
	}
}

func TestAcknowledgementBetweenMarkAndReceipt(t *testing.T) {
	x := newProxied(t)
	x.open()
	x.want("the secondary's guest has not acknowledged 601", x.p(wireSegment(1, 100, 601, wireACK, "", "")), "")
	x.mark(1)
	x.want("an update of the window, not received", x.p(wireSegment(1, 100, 601, wireACK, "", "")), "")
}

func TestSYNACKBetweenMarkAndReceipt(t *testing.T) {
	x := newProxied(t)
	synack := wireSegment(1, 99, 501, wireSYN|wireACK, "", "")
	x.want("", x.p(synack), "")
	x.mark(1)
	x.want("sent again, not received", x.p(synack), "")
}

// So a client that acknowledges the primary's number has it from both guests, or from a
// checkpoint: filter.Rewriter forgets at a commit what clients have asked for.
func TestAnAnswerGivenAfterTheMarkWaitsForThatOfTheOtherGuest(t *testing.T) {
	synack := wireSegment(1, 99, 501, wireSYN|wireACK, "", "")
	x := newProxied(t)
	x.want("the old guest answers before the mark", x.s(wireSegment(1, 799, 501, wireSYN|wireACK, "", "")), "")
	x.mark(1)
	x.want("the primary's after it", x.p(synack), "")
	x.want("which the checkpoint does not have", x.received(1), "")
	x.e.SecondaryMark(1)
	x.want("nor at the commit", x.p(synack), "")
	x.want("the new guest answers too", x.s(wireSegment(1, 899, 501, wireSYN|wireACK, "", "")), "SYN SYN")

	x = newProxied(t)
	x.mark(1)
	x.want("", x.p(synack), "")
	x.mark(2)
	x.want("of an older mark", x.received(1), "")
	x.want("the next checkpoint has it", x.received(2), "SYN")
}

// The first acknowledgement of a connection leaves whatever the
// secondary's guest has: after a failover nobody has the client's bytes.
func TestFirstAcknowledgement(t *testing.T) {
	x := newProxied(t)
	x.want("nothing is known of the secondary's guest", x.p(wireSegment(1, 100, 5000, wireACK, "", "")), "")
	// With its number lowered to 4000 it may leave here.
	if got := x.s(wireSegment(1, 100, 4000, wireACK, "", "")); strings.Contains(got, "ack5000") {
		t.Errorf("the secondary's guest has acknowledged less: %q", got)
	}
	x.want("it has acknowledged as much", x.s(wireSegment(1, 100, 5000, wireACK, "", "")), "ack5000")
}

func TestFirstAcknowledgementOfAConnectionThatTheGuestOpened(t *testing.T) {
	x := newProxied(t)
	x.want("", x.p(wireSegment(1, 99, 0, wireSYN, "", "")), "")
	x.want("", x.s(wireSegment(1, 99, 0, wireSYN, "", "")), "SYN")
	x.want("of the client's SYN|ACK, which the secondary's guest has not answered", x.p(wireSegment(1, 100, 501, wireACK, "", "")), "")
}

// A retransmission is let out at once, with a newer timestamp than that
// of older segments which wait and leave later: the client's PAWS drops those.
func TestOlderTimestampAfterNewer(t *testing.T) {
	x := newProxied(t)
	x.open()
	var newest uint32
	left := func(r compare.Result) {
		t.Helper()
		for _, f := range r.Release {
			if h := f.Data[34:]; h[12]>>4 == 8 {
				ts := binary.BigEndian.Uint32(h[24:])
				if int32(ts-newest) < 0 {
					t.Errorf("timestamp %d leaves after %d", ts, newest)
				}
				newest = ts
			}
		}
	}
	say := func(first bool, seq, time uint32, data string) {
		t.Helper()
		f := compare.Frame{Data: wireSegment(1, seq, 501, wireACK|wirePSH, wireTimes(time, 7), data)}
		if first {
			left(x.e.Primary(f, x.now))
		} else {
			left(x.e.Secondary(f, x.now))
		}
	}
	say(true, 100, 10, "aaaa")
	say(false, 100, 10, "aaaa")
	say(true, 104, 11, "bbbb")
	say(true, 108, 12, "cccc")
	say(true, 100, 250, "aaaa") // lost on its way to the client, and sent again
	say(false, 104, 11, "bbbb")
	say(false, 108, 12, "cccc")
}

// What a checkpoint has let out is sent again by the primary's guest
// only, and spoils the comparison behind it.
func TestRetransmissionOfWhatACheckpointCovered(t *testing.T) {
	x := newProxied(t)
	x.open()
	x.p(wireSegment(1, 100, 501, wireACK|wirePSH, "", "AAAA"))
	x.want("", x.s(wireSegment(1, 100, 501, wireACK|wirePSH, "", "BBBB")), "!data")
	x.want("", x.checkpoint(1), "AAAA")
	x.want("sent again", x.p(wireSegment(1, 100, 501, wireACK|wirePSH, "", "AAAA")), "AAAA")
	x.want("", x.p(wireSegment(1, 104, 501, wireACK|wirePSH, "", "CCCC")), "")
	x.want("the secondary's guest goes on from the checkpoint", x.s(wireSegment(1, 104, 501, wireACK|wirePSH, "", "CCCC")), "CCCC")
}

// Two datagrams that cross are no difference.
func TestCrossingDatagrams(t *testing.T) {
	x := newProxied(t)
	x.want("", x.p(wireDatagram(53, 5000, "A")), "")
	x.want("the other order", x.s(wireDatagram(53, 5000, "B")), "")
	x.want("", x.p(wireDatagram(53, 5000, "B")), "B")
	x.want("", x.s(wireDatagram(53, 5000, "A")), "A")
}

// Queries that differ only in the port that each guest chose will never
// meet. That is seen from the first pair and need not wait for the timeout.
func TestQueriesFromDifferentPorts(t *testing.T) {
	x := newProxied(t)
	p := x.e.Primary(compare.Frame{Data: wireDatagram(41111, 53, "query")}, x.now)
	s := x.e.Secondary(compare.Frame{Data: wireDatagram(42222, 53, "query")}, x.now)
	if !p.Diverged && !s.Diverged {
		for d := time.Duration(0); d < 10*time.Second; d += 100 * time.Millisecond {
			if x.e.Tick(x.now.Add(d)).Diverged {
				t.Errorf("the checkpoint is asked for after %v", d)
				return
			}
		}
		t.Error("no checkpoint is asked for")
	}
}

// The options of a SYN bind the whole connection: after a failover the
// guest would count with another window scale than the client.
func TestOptionsOfASYN(t *testing.T) {
	for name, opts := range map[string][2]string{
		"maximum segment size": {wireMSS + wireSACKOK + wireWindow7, "\x02\x04\x02\x18" + wireSACKOK + wireWindow7},
		"window scale":         {wireMSS + wireSACKOK + wireWindow7, wireMSS + wireSACKOK},
		"selective ACKs":       {wireMSS + wireSACKOK + wireWindow7, wireMSS + wireWindow7},
		"timestamps":           {wireMSS + wireTimes(1, 2) + wireWindow7, wireMSS + wireWindow7},
	} {
		t.Run(name, func(t *testing.T) {
			x := newProxied(t)
			x.want("", x.p(wireSegment(1, 99, 501, wireSYN|wireACK, opts[0], "")), "")
			if got := x.s(wireSegment(1, 99, 501, wireSYN|wireACK, opts[1], "")); got == "SYN" {
				t.Error("it has left")
			}
		})
	}
}

// A frame that is longer than any packet passes, though what cannot be
// compared is to be held.
func TestOversizedFrame(t *testing.T) {
	x := newProxied(t)
	x.e = compare.NewEngine(compare.Config{Marks: true, HoldUncompared: true})
	x.checkpoint(0)
	long := append(wireDatagram(53, 5000, "x"), make([]byte, 70000)...)
	if got := x.p(long); got != "" && !strings.HasPrefix(got, "!") {
		t.Error("70042 bytes have left")
	}
}
