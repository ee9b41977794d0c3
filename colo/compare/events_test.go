package compare_test

import (
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// Both guests have opened a connection. A SYN that repeats the primary's has not thereby
// been said by the secondary's guest whatever it carries.
func TestARepeatedSYNLeavesWithNothingNew(t *testing.T) {
	for name, again := range map[string][]byte{
		"data":           wireSegment(1, 99, 501, wireSYN|wireACK, wireMSS, "secret"),
		"a FIN":          wireSegment(1, 99, 501, wireSYN|wireACK|wireFIN, wireMSS, ""),
		"another option": wireSegment(1, 99, 501, wireSYN|wireACK, wireWindow7, ""),
	} {
		x := newProxied(t)
		synack := wireSegment(1, 99, 501, wireSYN|wireACK, wireMSS, "")
		x.want("of the primary's guest", x.p(synack), "")
		x.want("of the secondary's guest", x.s(synack), "SYN")
		if got := x.p(again); strings.Contains(got, "SYN") {
			t.Errorf("with %s: %q leaves", name, got)
		}
		x = newProxied(t)
		x.p(synack)
		x.s(synack)
		x.want("the same again", x.p(synack), "SYN")
	}
}

// A checkpoint covers a SYN with data (RFC 7413), and its repetition leaves.
func TestASYNWithDataThatACheckpointCoversIsRepeated(t *testing.T) {
	x := newProxied(t)
	syn := wireSegment(1, 99, 0, wireSYN, wireMSS, "GET")
	x.want("data with a SYN waits", x.p(syn), "!flags")
	x.want("", x.checkpoint(1), "GETSYN")
	x.want("again", x.p(syn), "GETSYN")
	x.want("with more", x.p(wireSegment(1, 99, 0, wireSYN, wireMSS, "GET MORE")), "!flags")
}

// The data of a SYN begins one number behind the SYN's, and the initial numbers of the two
// guests differ: what the secondary's SYN carries says nothing of the primary's stream.
func TestTheDataOfTheSecondarysSYNIsNoneOfItsStream(t *testing.T) {
	x := newProxied(t)
	x.want("", x.s(wireSegment(1, 99, 501, wireSYN|wireACK, "", "abc")), "")
	x.want("", x.p(wireSegment(1, 99, 501, wireSYN|wireACK, "", "")), "SYN")
	if got := x.p(wireSegment(1, 100, 501, wireACK|wirePSH, "", "bc")); strings.Contains(got, "bc") {
		t.Errorf("%q leaves, and the secondary's guest has said abc there", got)
	}
}

func TestTheDataOfARSTIsNoneOfTheStream(t *testing.T) {
	x := newProxied(t)
	x.open()
	x.want("", x.s(wireSegment(1, 100, 501, wireRST|wireACK, "", "")), "")
	x.want("the primary's says why", x.p(wireSegment(1, 100, 501, wireRST|wireACK, "", "secret")), "!flags")

	x = newProxied(t)
	x.open()
	x.want("", x.s(wireSegment(1, 100, 501, wireRST|wireACK, "", "abc")), "")
	if got := x.p(wireSegment(1, 100, 501, wireACK|wirePSH, "", "abc")); strings.Contains(got, "abc") {
		t.Errorf("%q leaves, and the secondary's guest has reset the connection", got)
	}
}

// Nobody looks at the SYN and the FIN of a RST (RFC 9293 section 3.10.7).
func TestARSTIsARSTWhateverElseItIs(t *testing.T) {
	x := newProxied(t)
	x.open()
	x.want("", x.p(wireSegment(1, 100, 501, wireRST|wireSYN|wireFIN|wireACK, "", "")), "")
	x.want("", x.s(wireSegment(1, 100, 501, wireRST|wireACK, "", "")), "SYNFINRST")
}

func TestAFINAmidWhatHasLeftWaits(t *testing.T) {
	x := newProxied(t)
	x.open()
	whole := wireSegment(1, 100, 501, wireACK|wirePSH, "", "abcdef")
	x.p(whole)
	x.want("", x.s(whole), "abcdef")
	x.want("a FIN behind abc", x.p(wireSegment(1, 100, 501, wireACK|wireFIN, "", "abc")), "")
}

// The keys of Multipath TCP (RFC 8684) are random. A peer that has got one guest's answer to
// its SYN cannot go on with the other guest before a checkpoint has made the two one.
func TestAConnectionOfMultipathTCPBeginsWithACheckpoint(t *testing.T) {
	x := newRig(t, everything())
	x.checkpoint(0)
	answer := func(key string) compare.Frame {
		return ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7 + "\x1e\x0c\x01\x01" + key}.frame()
	}
	x.told("the primary's guest answers", x.Primary(answer("primary."), x.now), "")
	x.told("the secondary's guest does", x.Secondary(answer("second.."), x.now), "!options")
	x.told("again, with nothing between", x.Primary(answer("primary."), x.now), "")
	x.told("the checkpoint has it", x.checkpoint(1), "@99 ack 1000 to 820200, @99 ack 1000 to 820200")
	x.told("once more", x.Primary(answer("primary."), x.now), "@99 ack 1000 to 820200")
	x.told("the connection goes on", x.Primary(data(100, "abcd").frame(), x.now), "")
	x.told("and is compared", x.Secondary(data(100, "abcd").frame(), x.now), "abcd@100 ack 1000 to 7400")
}
