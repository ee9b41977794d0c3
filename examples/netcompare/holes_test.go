package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
)

// tcp returns a segment of 10.0.0.1:80, with n bytes of data.
func tcp(seq uint32, flags byte, n int) []byte {
	f := make([]byte, 54+n)
	f[12], f[14], f[23] = 8, 0x45, packet.ProtoTCP
	binary.BigEndian.PutUint16(f[16:], uint16(40+n))
	copy(f[26:], []byte{10, 0, 0, 1, 10, 0, 0, 2, 0, 80, 156, 64})
	binary.BigEndian.PutUint32(f[38:], seq)
	f[46], f[47], f[48] = 5<<4, flags, 1
	return f
}

func TestWhatACaptureLacksIsToldApartFromWhatTheGuestsDifferIn(t *testing.T) {
	whole := [][]byte{tcp(1000, 0x12, 0), tcp(1001, 0x10, 300), tcp(1301, 0x10, 300), tcp(1601, 0x18, 300), tcp(1901, 0x11, 0)}
	capture := func(of ...int) string {
		var packets []string
		for _, i := range of {
			packets = append(packets, hex.EncodeToString(whole[i]))
		}
		return record(t, packets...)
	}
	for _, c := range []struct {
		of   []int
		want string
	}{
		{[]int{0, 1, 2, 3, 4}, ""},
		{[]int{0, 3, 1, 2, 1, 4}, ""},
		{[]int{2, 3, 4}, ""}, // it begins later
		{[]int{0, 1, 3, 4}, ": 300 bytes of 1 TCP connections are in no packet of it"},
		{[]int{0, 2, 4}, ": 600 bytes of 1 TCP connections are in no packet of it"},
		{[]int{0, 4}, ": 900 bytes of 1 TCP connections are in no packet of it"},
	} {
		name := capture(c.of...)
		var out bytes.Buffer
		_ = run(t.Context(), []string{name, capture(0, 1, 2, 3, 4)}, &out, io.Discard)
		const about = "are in no packet of it"
		if n := strings.Count(out.String(), about); c.want == "" && n > 0 || c.want != "" && (n != 1 || !strings.Contains(out.String(), name+c.want)) {
			t.Errorf("%v: got\n%s\nwant %q", c.of, out.String(), c.want)
		}
	}
}

// Whatever the order and the length of segments, and with numbers that begin anew, what is missing is
// what no segment has before the last that one has.
func TestHolesAreWhatNoSegmentHas(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 5))
		base := uint32(r.IntN(3)) - 100
		var x reach
		x.add(packet.TCP(tcp(base, packet.SYN, 0)[34:]))
		has, end := [200]bool{}, 0
		for range r.IntN(30) {
			from, n := r.IntN(150), r.IntN(40)
			x.add(packet.TCP(tcp(base+1+uint32(from), packet.ACK, n)[34:]))
			for i := range n {
				has[from+i] = true
			}
			end = max(end, from+n)
		}
		want := uint64(0)
		for i := range end {
			if !has[i] {
				want++
			}
		}
		if got := x.missing(); got != want {
			t.Fatalf("seed %d: %d bytes are missing, want %d", seed, got, want)
		}
	}
}

// A capture of a flow of which every other segment is missing takes no memory without end.
func TestHolesAreCountedInLittleMemory(t *testing.T) {
	var x reach
	for i := range uint32(5000) {
		x.add(packet.TCP(tcp(i*200, packet.ACK, 100)[34:]))
	}
	if got := x.missing(); got != 4999*100 || len(x.ahead) > maxStretches {
		t.Errorf("%d bytes are missing, and %d stretches are kept", got, len(x.ahead))
	}
}
