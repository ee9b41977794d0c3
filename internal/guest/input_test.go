package guest

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// take gives an input to the guest in Go and returns its answer, if it has one.
func take(t *testing.T, mem []byte, in Input) (Reply, bool) {
	t.Helper()
	frame := in.AppendFrame(nil)
	if got, err := ParseInput(frame); err != nil || got != in {
		t.Fatalf("%+v reads as %+v (%v)", in, got, err)
	}
	if _, _, err := PutInput(mem, in.VCPU, frame); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(mem)
	addr, off, n, err := Answer(mem, in.VCPU)
	if err != nil {
		t.Fatal(err)
	}
	for i := range mem {
		if mem[i] != before[i] && (uint64(i) < off || uint64(i) >= off+n) {
			t.Fatalf("%+v changed byte %#x without a word", in, i)
		}
	}
	if addr == 0 {
		return Reply{}, false
	}
	b, err := Emitted(mem, addr)
	if err != nil {
		t.Fatal(err)
	}
	r, err := ParseReply(b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ParseFrame(b); err == nil {
		t.Fatal("an answer was taken for a round")
	}
	return r, true
}

func TestInputIsTakenInOrderAndAnsweredWithAllThatWasTaken(t *testing.T) {
	params := Params{VCPUs: 2, Pages: 4, Touch: 2, Ring: 256}
	mem, regs := load(t, params)
	y := uint64(0)
	for m := uint64(1); m < 13; m++ {
		v := m * golden
		if r, ok := take(t, mem, Input{1, m + 1, v}); ok {
			t.Fatalf("an input ahead of its time was answered with %+v", r)
		}
		y = NextInput(y, m, v)
		want := Reply{1, m, y, v}
		for range 2 { // the second time it is a repetition
			if r, ok := take(t, mem, Input{1, m, v}); !ok || r != want {
				t.Fatalf("%+v (%v), want %+v", r, ok, want)
			}
		}
		if r, ok := take(t, mem, Input{1, m - 1, v}); ok {
			t.Fatalf("an old input was answered with %+v", r)
		}
		if _, err := Round(mem, &regs[1], nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	if m, got, err := LastInput(mem, 1); m != 12 || got != y || err != nil {
		t.Errorf("the guest remembers input %d, %#x (%v)", m, got, err)
	}
	if m, _, _ := LastInput(mem, 0); m != 0 {
		t.Errorf("the other vCPU has input %d", m)
	}
	model, err := NewModel(params, 1)
	if err != nil {
		t.Fatal(err)
	}
	for model.Round() < regs[1].N {
		model.Next(0)
	}
	if model.x != regs[1].X {
		t.Error("a round depends on input")
	}
}

func TestAnInputIsAValidPacketToTheGuest(t *testing.T) {
	b := Input{3, 7, 9}.AppendFrame(nil)
	be := binary.BigEndian
	ip, udp := b[ethernetSize:][:ipv4Size], b[ethernetSize+ipv4Size:]
	if checksum(ip) != 0 || be.Uint16(udp[2:]) != ReplyPort+3 || be.Uint16(udp) != DestPort ||
		!bytes.Equal(b[:6], template[6:12]) || !bytes.Equal(ip[16:20], template[ethernetSize+12:ethernetSize+16]) {
		t.Errorf("% x", b)
	}
	for n := range b {
		if _, err := ParseInput(b[:n]); err == nil {
			t.Errorf("%d bytes were read", n)
		}
	}
	b[payloadOffset] ^= 1
	if _, err := ParseInput(b); err == nil {
		t.Error("another magic was read")
	}
	if _, _, err := PutInput(make([]byte, 100), 0, make([]byte, FrameSize)); err == nil {
		t.Error("too little memory was taken")
	}
	if _, _, _, err := Answer(make([]byte, RingBase), MaxVCPUs); err == nil {
		t.Error("a vCPU too many answered")
	}
	if _, _, err := LastInput(nil, 0); err == nil {
		t.Error("no memory remembered")
	}
}
