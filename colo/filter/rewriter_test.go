package filter_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

type rewriterStep struct {
	Op, In, Out string
	OutSeqAck   [2]uint32 `json:"out_seq_ack"`
}

type rewriterCase struct {
	Name string

	// Recommended says what is right where QEMU is not: for each step the sequence
	// and acknowledgment numbers of what goes on, "held" for nothing, a second pair
	// for a packet that was held, and "-" for a checkpoint.
	Recommended []string
	Steps       []rewriterStep
}

// rewriterCases returns packets and what filter-rewriter of QEMU 7.2.22 did
// with them.
func rewriterCases(t testing.TB) []rewriterCase {
	t.Helper()
	b, err := os.ReadFile("testdata/rewriter.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Cases []rewriterCase }
	if err := json.Unmarshal(b, &file); err != nil {
		t.Fatal(err)
	}
	return file.Cases
}

// numbers returns the sequence number and the acknowledgment of a packet, whose checksum must
// be right.
func numbers(t *testing.T, frame []byte) string {
	t.Helper()
	var p packet.Packet
	p.Parse(frame)
	if h := p.TCP(); h.Checksum() != p.TCPChecksum() {
		t.Errorf("checksum %#x of %x", h.Checksum(), frame)
	}
	return fmt.Sprintf("%d/%d", p.TCP().Seq(), p.TCP().Ack())
}

func TestRewriterDoesWhatQEMUDidOrShould(t *testing.T) {
	for _, strict := range []bool{true, false} {
		for _, c := range rewriterCases(t) {
			r := newTwice(t, filter.RewriterConfig{Strict: strict})
			want := c.Recommended
			if strict {
				want = nil
			} else if want != nil && len(want) != len(c.Steps) {
				t.Fatalf("%s: %d recommendations for %d steps", c.Name, len(want), len(c.Steps))
			}
			for i, s := range c.Steps {
				in := unhex(t, s.In)
				got := ""
				switch s.Op {
				case "checkpoint":
					r.Commit(0)
					continue
				case "to_guest":
					if got = "held"; r.Inbound(in, 0) {
						got = numbers(t, in)
					}
				case "from_guest":
					early := r.Outbound(in, 0)
					got = numbers(t, in)
					if early != nil {
						got += " " + numbers(t, early)
					}
				default:
					t.Fatalf("op %q", s.Op)
				}
				if want != nil {
					if got != want[i] {
						t.Errorf("%s: strict %t: step %d: %s, want %s", c.Name, strict, i, got, want[i])
					}
				} else if out := hex.EncodeToString(in); out != s.Out {
					t.Errorf("%s: strict %t: step %d:\ngot  %s\nwant %s", c.Name, strict, i, out, s.Out)
				}
			}
		}
	}
}

// segment builds a TCP segment between the client and the guest.
func segment(toGuest, v6 bool, seq, ack uint32, flags uint8, opts, data []byte) []byte {
	h := make([]byte, packet.TCPLen+len(opts), packet.TCPLen+len(opts)+len(data))
	copy(h[packet.TCPLen:], opts)
	h[12], h[13] = byte(len(h)/4)<<4, flags
	binary.BigEndian.PutUint32(h[4:], seq)
	binary.BigEndian.PutUint32(h[8:], ack)
	binary.BigEndian.PutUint16(h[14:], 0x4000)
	h = append(h, data...)
	guest, client, gp, cp := byte(1), byte(2), uint16(80), uint16(40000)
	src, dst := guest, client
	if toGuest {
		src, dst, gp, cp = client, guest, cp, gp
	}
	binary.BigEndian.PutUint16(h[0:], gp)
	binary.BigEndian.PutUint16(h[2:], cp)
	b := make([]byte, packet.EthernetLen)
	if v6 {
		binary.BigEndian.PutUint16(b[12:], packet.TypeIPv6)
		i := make([]byte, packet.IPv6Len)
		i[0], i[6], i[23], i[39] = 0x60, packet.ProtoTCP, src, dst
		binary.BigEndian.PutUint16(i[4:], uint16(len(h)))
		b = append(b, i...)
	} else {
		binary.BigEndian.PutUint16(b[12:], packet.TypeIPv4)
		i := make([]byte, packet.IPv4Len)
		i[0], i[9], i[15], i[19] = 0x45, packet.ProtoTCP, src, dst
		binary.BigEndian.PutUint16(i[2:], uint16(len(i)+len(h)))
		b = append(b, i...)
	}
	return withSum(append(b, h...))
}

// withSum sets the checksum of a segment, and returns its frame.
func withSum(frame []byte) []byte {
	var p packet.Packet
	p.Parse(frame)
	p.TCP().SetChecksum(p.TCPChecksum())
	return frame
}

// established returns a rewriter with a connection whose numbers are 8000 apart.
func established(v6 bool) *filter.Rewriter {
	r := filter.NewRewriter(filter.RewriterConfig{})
	r.Inbound(segment(true, v6, 500, 0, packet.SYN, nil, nil), 0)
	r.Outbound(segment(false, v6, 9000, 501, packet.SYN|packet.ACK, nil, nil), 0)
	r.Inbound(segment(true, v6, 501, 1001, packet.ACK, nil, nil), 0)
	return r
}

func TestSelectiveAcknowledgmentsAreTranslated(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := established(v6)
		opts := unhex(t, "01 01 05 12 000007d0 00000bb8 00000fa0 00001388")
		f := segment(true, v6, 501, 1001, packet.ACK, opts, nil)
		r.Inbound(f, 0)
		if got := numbers(t, f); got != "501/9001" {
			t.Errorf("%s", got)
		}
		want := unhex(t, "01 01 05 12 00002710 00002af8 00002ee0 000032c8") // each 8000 more
		if !bytes.Contains(f, want) {
			t.Errorf("options in %x, want %x", f, want)
		}
	}
}

// stamps returns a timestamps option with its two numbers, behind two bytes that do nothing.
func stamps(t testing.TB, val, echo uint32) []byte {
	b := unhex(t, "0101080a")
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, val), echo)
}

// times returns the two numbers of the timestamps option that ends the header.
func times(frame []byte) string {
	var p packet.Packet
	p.Parse(frame)
	opts := p.TCP().Options()
	ts := opts[len(opts)-8:]
	return fmt.Sprintf("%d/%d", binary.BigEndian.Uint32(ts), binary.BigEndian.Uint32(ts[4:]))
}

func TestTimestampsAreTranslated(t *testing.T) {
	// Whatever lies in front of it, and on odd offsets too.
	for _, lead := range []string{"0101", "01010402 0101", "01 0303 07", "01010101 0101"} {
		for _, guestOpens := range []bool{false, true} {
			opts := func(val, echo uint32) []byte {
				b := append(unhex(t, lead), 8, 10)
				b = binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, val), echo)
				if n := len(b) % 4; n != 0 {
					b = append(make([]byte, 4-n), b...)
					for i := range 4 - n {
						b[i] = packet.OptNop
					}
				}
				return b
			}
			r := filter.NewRewriter(filter.RewriterConfig{})
			// The primary's guest has sent 100000 in its SYN.
			var ack []byte
			if guestOpens {
				r.Outbound(segment(false, false, 9000, 0, packet.SYN, opts(100007, 0), nil), 0)
				ack = segment(true, false, 500, 1001, packet.SYN|packet.ACK, opts(70, 100000), nil)
			} else {
				r.Inbound(segment(true, false, 500, 0, packet.SYN, opts(69, 0), nil), 0)
				r.Outbound(segment(false, false, 9000, 501, packet.SYN|packet.ACK, opts(100007, 69), nil), 0)
				// Again, as nobody has answered it yet.
				r.Outbound(segment(false, false, 9000, 501, packet.SYN|packet.ACK, opts(101007, 69), nil), 0)
				ack = segment(true, false, 501, 1001, packet.ACK, opts(70, 100000), nil)
			}
			if !r.Inbound(ack, 0) || times(ack) != "70/100007" {
				t.Errorf("the handshake: %s", times(ack))
			}
			in := segment(true, false, 501, 1001, packet.ACK, opts(75, 100010), []byte("x"))
			if !r.Inbound(in, 0) || times(in) != "75/100017" || numbers(t, in) != "501/9001" {
				t.Errorf("to the guest: %s", times(in))
			}
			out := segment(false, false, 9001, 502, packet.ACK, opts(100018, 75), []byte("y"))
			if r.Outbound(out, 0); times(out) != "100011/75" || numbers(t, out) != "1001/502" {
				t.Errorf("from the guest: %s", times(out))
			}
		}
	}
}

func TestConnectionsOfTheLastCheckpointNeedNothing(t *testing.T) {
	r := established(false)
	r.Commit(1)
	r.Resumed(1)
	f := segment(true, false, 501, 1001, packet.ACK, nil, nil)
	if !r.Inbound(f, 0) || numbers(t, f) != "501/1001" {
		t.Errorf("%s", numbers(t, f))
	}
	if s := r.Stats(); s.Conns != 0 {
		t.Errorf("%+v", s)
	}
	// In the middle of a handshake: the SYN came before, its answer after.
	r.Inbound(segment(true, false, 700, 0, packet.SYN, nil, nil), 0)
	r.Commit(2)
	f = segment(true, false, 701, 2001, packet.ACK, nil, nil)
	if !r.Inbound(f, 0) || numbers(t, f) != "701/2001" {
		t.Errorf("%s", numbers(t, f))
	}
}

func TestFailoverKeepsTranslatingAndFollowsNothingNew(t *testing.T) {
	r := established(false)
	r.Failover()
	f := segment(false, false, 9001, 501, packet.ACK, nil, []byte("x"))
	r.Outbound(f, 0)
	if got := numbers(t, f); got != "1001/501" {
		t.Errorf("%s", got)
	}
	r.Inbound(segment(true, false, 9900, 0, packet.SYN, nil, nil), 0)
	r.Outbound(segment(false, false, 77000, 9901, packet.SYN|packet.ACK, nil, nil), 0)
	f = segment(true, false, 9901, 77001, packet.ACK, nil, nil)
	if !r.Inbound(f, 0) || numbers(t, f) != "9901/77001" {
		t.Errorf("the new connection is the survivor's own: %s", numbers(t, f))
	}
}

func TestAHostThatFollowsAgainAfterAFailoverTranslatesWhatIsOpenedThen(t *testing.T) {
	for _, strict := range []bool{true, false} {
		r := filter.NewRewriter(filter.RewriterConfig{Strict: strict})
		r.Commit(0)
		r.Failover()
		r.Commit(0)
		r.Inbound(segment(true, false, 500, 0, packet.SYN, nil, nil), 0)
		r.Outbound(segment(false, false, 9000, 501, packet.SYN|packet.ACK, nil, nil), 0)
		in := segment(true, false, 501, 1001, packet.ACK, nil, nil)
		r.Inbound(in, 0)
		out := segment(false, false, 9001, 501, packet.ACK, nil, []byte("x"))
		r.Outbound(out, 0)
		if got := numbers(t, in) + " " + numbers(t, out); got != "501/9001 1001/501" {
			t.Errorf("strict %t: %s", strict, got)
		}
	}
}

func TestChecksumThatIsLeftToTheDeviceStays(t *testing.T) {
	r := established(false)
	f := append(make([]byte, 12), segment(true, false, 501, 1001, packet.ACK, nil, nil)...)
	f[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	sum := bytes.Clone(f[12+34+16 : 12+34+18])
	r.Inbound(f, 12)
	var p packet.Packet
	p.Parse(f[12:])
	if p.TCP().Ack() != 9001 || !bytes.Equal(f[12+34+16:12+34+18], sum) {
		t.Errorf("%x", f)
	}
}

func TestTheTableIsBoundedAndEndedConnectionsGoFirst(t *testing.T) {
	r := filter.NewRewriter(filter.RewriterConfig{MaxConns: 2})
	open := func(port byte) {
		f := segment(true, false, 500, 0, packet.SYN, nil, nil)
		f[35] = port
		r.Inbound(resealed(f), 0)
		// Too early, and so kept; a second one is not.
		for range 2 {
			f = segment(true, false, 501, 1001, packet.ACK, nil, nil)
			f[35] = port
			r.Inbound(resealed(f), 0)
		}
	}
	open(1)
	open(2)
	open(3)
	if s := r.Stats(); s.Conns != 2 || s.Held != 2 || s.Dropped != 2 {
		t.Errorf("%+v", s)
	}
	f := segment(true, false, 501, 1001, packet.RST, nil, nil)
	f[35] = 1
	r.Inbound(resealed(f), 0)
	open(4)
	if s := r.Stats(); s.Conns != 2 || s.Held != 3 {
		t.Errorf("%+v", s)
	}
}

// A large packet comes too early in each epoch: before the guest has answered the client, or after
// that. Those of all epochs together have more bytes than may wait at one time.
func TestWhatWaitsIsForgottenAtACommitAndMakesRoom(t *testing.T) {
	const epochs = 200
	r := filter.NewRewriter(filter.RewriterConfig{})
	data := make([]byte, 16000)
	for epoch := range uint64(epochs) {
		r.Inbound(segment(true, false, 500, 0, packet.SYN, nil, nil), 0)
		seq := uint32(501)
		if epoch%2 == 1 {
			r.Outbound(segment(false, false, 9000, 501, packet.SYN|packet.ACK, nil, nil), 0)
			seq += 100 // those before them are still to come
		}
		if r.Inbound(segment(true, false, seq, 1001, packet.ACK, nil, data), 0) {
			t.Fatalf("epoch %d: it is delivered", epoch)
		}
		r.Commit(epoch)
	}
	if s := r.Stats(); s.Held != epochs || s.Dropped != 0 {
		t.Errorf("%+v", s)
	}
}

func TestRewritingAllocatesNothing(t *testing.T) {
	r := established(false)
	in := segment(true, false, 501, 1001, packet.ACK, nil, make([]byte, 1400))
	out := segment(false, false, 9001, 501, packet.ACK, nil, make([]byte, 1400))
	if n := testing.AllocsPerRun(100, func() { r.Inbound(in, 0); r.Outbound(out, 0) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRewriter(b *testing.B) {
	for _, c := range []struct{ conns, data int }{{1, 0}, {1000, 0}, {1, 1460}} {
		b.Run(fmt.Sprintf("%dconns-%dB", c.conns, c.data), func(b *testing.B) {
			r := filter.NewRewriter(filter.RewriterConfig{})
			frames := make([][]byte, c.conns)
			for i := range frames {
				one := func(toGuest bool, seq, ack uint32, flags uint8, data []byte) []byte {
					f := segment(toGuest, false, seq, ack, flags, nil, data)
					at := 34 // the client's port
					if !toGuest {
						at = 36
					}
					binary.BigEndian.PutUint16(f[at:], uint16(1000+i))
					return resealed(f)
				}
				r.Inbound(one(true, 500, 0, packet.SYN, nil), 0)
				r.Outbound(one(false, 9000, 501, packet.SYN|packet.ACK, nil), 0)
				r.Inbound(one(true, 501, 1001, packet.ACK, nil), 0)
				frames[i] = one(false, 9001, 501, packet.ACK, make([]byte, c.data))
			}
			bare := func() float64 { // a parse and a checksum, in nanoseconds
				const n = 500000
				var p packet.Packet
				begin := time.Now()
				for i := range n {
					p.Parse(frames[i%c.conns])
					p.TCP().SetChecksum(p.TCPChecksum())
				}
				return float64(time.Since(begin).Nanoseconds()) / n
			}()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if i++; i == c.conns {
					i = 0
				}
				r.Outbound(frames[i], 0)
			}
			if n := r.Stats().Rewritten; n < uint64(b.N) {
				b.Errorf("%d of %d packets are translated", n, b.N)
			}
			ns := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
			b.ReportMetric(1e3/ns, "Mpackets/s")
			b.ReportMetric(ns/bare, "x-bare")
		})
	}
}
