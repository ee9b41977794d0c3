package filter_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A course is what happens to connections, one event a line:
//
//	in FLAGS SEQ ACK [port N] [data] => what the guest gets, or held
//	out FLAGS SEQ ACK [port N] [data] => what leaves, and what was held and reaches the guest now
//	checkpoint
//	failover
//
// The client begins with 500, the primary's guest with 1000, the secondary's with 9000.
type course struct{ what, events string }

// run compares what follows from each event with what is to follow.
func (c course) run(t *testing.T, name string, wrap func(f []byte) []byte, v6 bool, client, guest uint32) {
	t.Helper()
	c.each(t, name, wrap, v6, client, guest, func(line, got string) {
		if event, want, _ := strings.Cut(line, " => "); got != want {
			t.Errorf("%s: %s: %s, want %s", name, event, got, want)
		}
	})
}

// each adds client and guest to the numbers of the client and of the guests, and calls fn with
// what follows from each line that has a segment.
func (c course) each(t *testing.T, name string, wrap func(f []byte) []byte, v6 bool, client, guest uint32, fn func(line, got string)) {
	t.Helper()
	r := newTwice(t, filter.RewriterConfig{})
	seen := func(f []byte) string {
		h, own, other := tcpOf(f), guest, client
		if h[0] != 0 || h[1] != 80 {
			own, other = other, own
		}
		var p packet.Packet
		if p.Parse(f); h.Checksum() != p.TCPChecksum() {
			t.Errorf("%s: the checksum of %x is wrong", name, f)
		}
		if h.Flags()&packet.ACK == 0 {
			return fmt.Sprintf("%d/%d", h.Seq()-own, h.Ack())
		}
		return fmt.Sprintf("%d/%d", h.Seq()-own, h.Ack()-other)
	}
	for line := range strings.Lines(c.events) {
		line = strings.TrimSpace(line)
		event, _, _ := strings.Cut(line, " => ")
		words := strings.Fields(event)
		switch {
		case len(words) == 0:
			continue
		case words[0] == "checkpoint":
			r.Commit(0)
			continue
		case words[0] == "failover":
			r.Failover()
			continue
		}
		var seq, ack uint32
		fmt.Sscan(words[2], &seq)
		fmt.Sscan(words[3], &ack)
		words, flags := words[4:], flagsOf(words[1])
		port := uint16(0)
		if len(words) > 1 && words[0] == "port" {
			fmt.Sscan(words[1], &port)
			words = words[2:]
		}
		toGuest := strings.HasPrefix(event, "in ")
		own, other := guest, client
		if toGuest {
			own, other = other, own
		}
		seq += own
		if flags&packet.ACK != 0 {
			ack += other
		}
		f := segment(toGuest, v6, seq, ack, flags, nil, []byte(strings.Join(words, " ")))
		h, at := tcpOf(f), 2
		if toGuest {
			at = 0
		}
		h[at+1] += byte(port)
		f = wrap(resealed(f))
		got := "held"
		if !toGuest {
			early := r.Outbound(f, 0)
			if got = seen(f); early != nil {
				got += " " + seen(early)
			}
		} else if r.Inbound(f, 0) {
			got = seen(f)
		}
		fn(line, got)
	}
}

func flagsOf(s string) (flags uint8) {
	for i, c := range "FSRPA" {
		if strings.ContainsRune(s, c) {
			flags |= 1 << i
		}
	}
	return flags
}

// Connections, as clients and guests have them between checkpoints and failovers, with and
// without IPv6 and VLANs.
func TestConnectionsRunTheirCourse(t *testing.T) {
	const opened = "in S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nin A 501 1001 => 501/9001\n"
	for _, c := range []course{
		{"data of a SYN is taken", "in S 500 0 data => 500/0\nout SA 9000 505 => 9000/505\nin A 505 1001 => 505/9001\nout A 9001 505 => 1001/505"},
		{"data of a SYN is not taken", "in S 500 0 data => 500/0\nout SA 9000 501 => 9000/501\nin A 501 1001 data => 501/9001\nout A 9001 505 => 1001/505"},
		{"the ACK is lost, and data comes", "in S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nin PA 501 1001 data => 501/9001\nout A 9001 505 => 1001/505"},
		{"the ACK and the first data are lost", "in S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nin PA 505 1001 more => held\nin PA 501 1001 data => 501/9001\nout A 9001 505 => 1001/505 505/9001"},
		{"the client's SYN is repeated", "in S 500 0 => 500/0\nin S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nin S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nin A 501 1001 => 501/9001"},
		{"the SYN|ACK is repeated when it is known", opened + "out SA 9000 501 => 1000/501\nin A 501 1001 => 501/9001"},
		{"a checkpoint between SYN and SYN|ACK", "in S 500 0 => 500/0\ncheckpoint\nout SA 9000 501 => 9000/501\nin A 501 1001 => 501/9001\nout A 9001 501 x => 1001/501"},
		{"a checkpoint between SYN|ACK and ACK", "in S 500 0 => 500/0\nout SA 9000 501 => 9000/501\ncheckpoint\nin A 501 1001 => 501/1001\nout A 1001 501 x => 1001/501"},
		{"a checkpoint in the middle", opened + "checkpoint\nin A 501 1001 x => 501/1001\nout A 1001 502 => 1001/502"},
		{"two checkpoints", opened + "checkpoint\ncheckpoint\nin A 501 1001 x => 501/1001\nout A 1001 502 => 1001/502"},
		{"the same addresses again after a checkpoint", opened + "checkpoint\nin S 700 0 => 700/0\nout SA 9900 701 => 9900/701\nin A 701 2001 => 701/9901\nout A 9901 701 => 2001/701"},
		{"a failover in the middle", opened + "failover\nin A 501 1001 x => 501/9001\nout A 9001 502 => 1001/502"},
		{"a failover between SYN|ACK and ACK", "in S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nfailover\nin A 501 1001 => 501/9001\nout A 9001 501 => 1001/501"},
		{"a failover between SYN and SYN|ACK", "in S 500 0 => 500/0\nfailover\nout SA 9000 501 => 9000/501\nin A 501 1001 => 501/9001"},
		{"that, and nobody had answered", "in S 500 0 => 500/0\nfailover\nout SA 9000 501 => 9000/501\nin A 501 9001 => 501/9001\nout A 9001 501 => 9001/501"},
		{"a connection after a failover", "failover\nin S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nin A 501 9001 => 501/9001\nout A 9001 501 => 9001/501"},
		{"a failover, protected anew", opened + "failover\ncheckpoint\nin A 501 1001 x => 501/1001\nout A 1001 502 => 1001/502"},
		{"three connections at once", "in S 500 0 => 500/0\nin S 600 0 port 1 => 600/0\nout SA 9000 501 => 9000/501\nin S 700 0 port 2 => 700/0\nout SA 8000 701 port 2 => 8000/701\nin A 701 2001 port 2 => 701/8001\nin A 501 1001 => 501/9001\nout SA 4294967295 601 port 1 => 4294967295/601\nin A 601 0 port 1 => 601/0\nout A 0 601 port 1 => 0/601\nout A 8001 701 port 2 => 2001/701\nout A 9001 501 => 1001/501"},
		{"numbers that wrap between the guests", "in S 4294967295 0 => 4294967295/0\nout SA 4294967290 0 => 4294967290/0\nin A 0 6 => 0/4294967291\nout A 4294967291 0 abcdefghij => 6/0\nin A 0 16 => 0/5\nout A 5 0 => 16/0"},
		{"numbers half of all apart", "in S 500 0 => 500/0\nout SA 2147484648 501 => 2147484648/501\nin A 501 1001 => 501/2147484649\nout A 2147484649 501 x => 1001/501"},
		{"the same number by chance", "in S 500 0 => 500/0\nout SA 1000 501 => 1000/501\nin A 501 1001 => 501/1001\nout A 1001 501 => 1001/501"},
		{"the guest refuses", "in S 500 0 => 500/0\nout RA 0 501 => 0/501\nin S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nin A 501 1001 => 501/9001"},
		{"a RST of the guest that refuses nothing", "in S 500 0 => 500/0\nout R 9001 0 => 9001/0\nin A 501 1001 => held\nout SA 9000 501 => 9000/501 501/9001"},
		{"the guest ends it at once", opened + "out RA 9001 501 => 1001/501\nin A 501 1001 late => 501/9001"},
		{"a RST of the guest without ACK", opened + "out R 9001 0 => 1001/0"},
		{"a RST of the client without ACK", opened + "in R 501 0 => 501/0\nout A 9001 501 late => 1001/501"},
		{"both ends close it", opened + "in FA 501 1001 => 501/9001\nout FA 9001 502 => 1001/502\nin A 502 1002 => 502/9002"},
		{"both ends close it at once", opened + "out FA 9001 501 => 1001/501\nin FA 501 1001 => 501/9001\nout A 9002 502 => 1002/502\nin A 502 1002 => 502/9002"},
		{"the same addresses at once, with a number beyond", opened + "in FA 501 1001 => 501/9001\nout FA 9001 502 => 1001/502\nin A 502 1002 => 502/9002\nin S 900 0 => 900/0\nout SA 9900 901 => 9900/901\nin A 901 2001 => 901/9901\nout A 9901 901 => 2001/901"},
		{"the guest calls", "out S 9000 0 => 9000/0\nin SA 500 1001 => 500/9001\nout A 9001 501 => 1001/501\nin A 501 1001 x => 501/9001"},
		{"the guest calls twice", "out S 9000 0 => 9000/0\nout S 9000 0 => 9000/0\nin SA 500 1001 => 500/9001\nout A 9001 501 => 1001/501\nin SA 500 1001 => 500/9001\nout A 9001 501 => 1001/501"},
		{"the guest calls, and is refused", "out S 9000 0 => 9000/0\nin RA 0 1001 => 0/9001"},
		{"the guest calls, and a checkpoint comes", "out S 9000 0 => 9000/0\ncheckpoint\nin SA 500 1001 => 500/1001\nout A 1001 501 => 1001/501"},
		{"the guest calls, and then a failover", "out S 9000 0 => 9000/0\nfailover\nin SA 500 1001 => 500/9001\nout A 9001 501 => 1001/501"},
		{"both call", "out S 9000 0 => 9000/0\nin S 500 0 => 500/0\nout SA 9000 501 => 9000/501\nin SA 500 1001 => 500/9001\nout A 9001 501 => 1001/501"},
		{"of a connection that is older than the state", "in A 501 1001 x => 501/1001\nout A 1001 502 => 1001/502\nin FA 502 1001 => 502/1001\nout FA 1001 503 => 1001/503"},
		{"the primary has answered first", "in S 500 0 => 500/0\nin A 501 1001 => held\nin A 501 1001 data => held\nout SA 9000 501 => 9000/501 501/9001\nin A 501 1001 data => 501/9001\nout A 9001 505 => 1001/505"},
	} {
		for _, v6 := range []bool{false, true} {
			for where, wrap := range map[string]func(f []byte) []byte{"": bare, " in a VLAN": behind("\x81\x00\x00\x05")} {
				for _, shift := range [][2]uint32{{0, 0}, {1<<32 - 501, 0}, {0, 1<<32 - 1001}, {1<<32 - 502, 1<<32 - 9001}, {1<<31 - 501, 1<<31 - 1001}, {7, 1<<31 - 9001}} {
					c.run(t, fmt.Sprintf("%s%s, IPv6 %t, shifted by %d", c.what, where, v6, shift), wrap, v6, shift[0], shift[1])
				}
			}
		}
	}
}

// Which numbers a connection has, and what its packets come in, changes nothing of what becomes
// of it.
func TestACourseIsTheSameAtEachNumber(t *testing.T) {
	shifts := [][2]uint32{{1<<32 - 502, 0}, {1<<32 - 505, 1<<32 - 1003}, {3, 1<<32 - 9004}, {1<<31 - 505, 1<<31 - 9003}, {1<<31 - 501, 1<<31 - 1002}}
	seeds := 600
	if testing.Short() {
		seeds = 60
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(uint64(seed), 5))
		var b strings.Builder
		says := func(who, flags string, seq, ack int) {
			if !strings.Contains(flags, "A") {
				ack = 0
			}
			fmt.Fprintf(&b, "%s %s %d %d", who, flags, seq, ack)
			if rnd.IntN(4) == 0 {
				b.WriteString(" port 1")
			}
			fmt.Fprintln(&b, "", "datadata"[:rnd.IntN(5)])
		}
		for range 40 {
			client, isn := 501+rnd.IntN(8), 500+100*rnd.IntN(2)*rnd.IntN(2)
			guest := 9001 + rnd.IntN(8)
			switch n := rnd.IntN(32); {
			case n < 4:
				says("in", "S", isn, 0)
			case n < 7:
				says("out", "SA", 9000+50*rnd.IntN(2)*rnd.IntN(2), isn+1)
			case n < 9:
				says("in", "SA", isn, 1001)
			case n < 10:
				says("out", "S", 9000, 0)
			case n < 18:
				says("in", []string{"A", "A", "A", "PA", "FA", "FA", "RA", "R"}[rnd.IntN(8)], client, guest-8000)
			case n < 29:
				flags := []string{"A", "A", "A", "PA", "FA", "FA", "RA", "R"}[rnd.IntN(8)]
				if guest == 9004 && strings.HasPrefix(flags, "R") {
					guest++ // of a RST the number 0 may mean nothing
				}
				says("out", flags, guest, client)
			case n < 30 && rnd.IntN(3) == 0:
				fmt.Fprintln(&b, "checkpoint")
			case n < 31 && rnd.IntN(3) == 0:
				fmt.Fprintln(&b, "failover")
			}
		}
		c := course{fmt.Sprint("seed ", seed), b.String()}
		var first []string
		c.each(t, c.what, bare, false, 0, 0, func(_, got string) { first = append(first, got) })
		for i, shift := range shifts {
			n, wrap := 0, bare
			if i%2 == 1 {
				wrap = behind("\x81\x00\x00\x05")
			}
			name := fmt.Sprintf("%s, shifted by %d", c.what, shift)
			c.each(t, name, wrap, i%3 == 0, shift[0], shift[1], func(line, got string) {
				if got != first[n] {
					t.Errorf("%s: %s: %s, want %s", name, line, got, first[n])
				}
				n++
			})
		}
		if t.Failed() {
			t.Fatal(c.events)
		}
	}
}
