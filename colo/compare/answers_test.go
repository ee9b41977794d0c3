package compare_test

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A client that begins anew may get the answer to either of two SYNs, and the guests may answer another one each.
func TestAnAnswerToOneSYNIsNoneToAnother(t *testing.T) {
	for name, c := range map[string]struct{ primary, secondary uint32 }{
		"the later":   {5001, 2001},
		"the earlier": {2001, 5001},
	} {
		x := newRig(t, lowering())
		x.checkpoint(0)
		answer := func(ack uint32) compare.Frame {
			return ackSeg{seq: 99, ack: ack, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}.frame()
		}
		left := len(x.Secondary(answer(c.secondary), x.now).Release)
		if left += len(x.Primary(answer(c.primary), x.now).Release); left != 0 {
			t.Errorf("the primary's guest answers %s: that leaves, and the other guest has not said it", name)
		}
	}
}

// A checksum that the guest's device need not look at, or has yet to finish, is that of the pseudo-header, which
// has nothing of the echo.
func TestAnEchoIsTranslatedWhateverTheChecksumIs(t *testing.T) {
	for _, vnet := range []int{0, 10, 12, 20, 24} {
		for _, partial := range []bool{false, true} {
			if partial && vnet == 0 {
				continue
			}
			cfg := lowering()
			cfg.LowerAcks = false
			x := newRig(t, cfg)
			x.checkpoint(0)
			say := func(who func(compare.Frame, time.Time) compare.Result) func(at, seq uint32, text string) []compare.Frame {
				return func(at, seq uint32, text string) []compare.Frame {
					a := data(seq, text)
					if a.opts = wireTimes(at, 7); text == "" {
						a.flags = packet.SYN | packet.ACK
					}
					return who(a.frame(), x.now).Release
				}
			}
			p, s := say(x.Primary), say(x.Secondary)
			p(10, 99, "")
			s(10, 99, "")
			p(10, 100, "aaaa")
			s(10, 100, "aaaa")
			p(11, 104, "bbbb")
			p(250, 100, "aaaa")
			if got := stampOf(t, s(11, 104, "bbbb")); got != 250 {
				t.Fatalf("it has left with %d", got)
			}
			f := append(make([]byte, vnet), answer(108, wireTimes(7, 250))...)
			var v packet.Packet
			v.ParseVNet(f, vnet)
			want := v.TCP().Checksum()
			if partial {
				f[0] = packet.VNetNeedsCsum
				binary.LittleEndian.PutUint16(f[6:], 34)
				binary.LittleEndian.PutUint16(f[8:], packet.TCPChecksumAt)
				want = v.PseudoSum()
				v.TCP().SetChecksum(want)
			}
			if !x.Inbound(compare.Frame{Data: f, VNetHdr: vnet}) {
				t.Errorf("header of %d bytes, partial=%t: the echo is that of a segment which left with another time", vnet, partial)
			}
			if !partial {
				want = v.TCPChecksum()
			}
			if got := v.TCP().Checksum(); got != want {
				t.Errorf("header of %d bytes, partial=%t: the checksum is %#x, want %#x", vnet, partial, got, want)
			}
		}
	}
}

// The guests of a pair choose different numbers. When the peer has answered the primary's, the SYN of the
// secondary's guest has that one too, if it is repeated: it begins no other connection.
func TestASYNThatIsRepeatedMayHaveTheOtherGuestsNumber(t *testing.T) {
	for _, flags := range []byte{packet.SYN | packet.ACK, packet.SYN} {
		for _, order := range []string{"PS", "SP", "S", "PSS"} {
			x := newRig(t, lowering())
			x.checkpoint(0)
			syn := func(seq uint32) compare.Frame {
				return ackSeg{seq: seq, ack: 1000, win: 6400, flags: flags, opts: wireMSS + wireWindow7}.frame()
			}
			n := len(x.Primary(syn(99), x.now).Release) + len(x.Secondary(syn(7), x.now).Release)
			for _, who := range order {
				if who == 'P' {
					n += len(x.Primary(syn(99), x.now).Release)
				} else {
					n += len(x.Secondary(syn(99), x.now).Release)
				}
			}
			if want := 1 + strings.Count(order, "P"); n != want {
				t.Errorf("%#x, %s: %d SYNs have left, want %d", flags, order, n, want)
			}
			a := data(100, "what both say")
			n = len(x.Primary(a.frame(), x.now).Release) + len(x.Secondary(a.frame(), x.now).Release)
			if n != 1 {
				t.Errorf("%#x, %s: %d of the segments of both guests have left", flags, order, n)
			}
		}
	}
}
