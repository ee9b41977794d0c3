package device

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/internal/packet"
)

// composing is an uplink in whose memory frames are made.
type composing struct {
	*uplink
	spare    bool // its network takes nothing, as it finds when the frame is made
	composed int
	none     int // how many were no frames after all
}

var errNone = errors.New("none")

func (u *composing) ComposePacket(n int, compose func([]byte) bool) error {
	if u.full {
		return errors.New("full")
	}
	f := bytes.Repeat([]byte{0xa5}, n) // of a former frame
	u.composed++
	switch {
	case !compose(f):
		u.none++
		return errNone
	case u.spare:
		return errors.New("full after all")
	}
	return u.WritePacket(f)
}

// compose has the card's uplink make frames in its memory.
func (r *netRig) compose() *composing {
	u := &composing{uplink: r.up}
	r.nic.sending.init(u, r.nic.vnet)
	return u
}

func TestAFrameIsMadeWhereTheUplinkWantsIt(t *testing.T) {
	r := newNetRig(t)
	up := r.compose()
	var want [][]byte
	for i := range 20 {
		f := frame(i, 60+i*70)
		want = append(want, f)
		r.send(uint16(4*i), f)
	}
	r.watch(func() { drain(r.nic.step) })
	if !slices.EqualFunc(r.up.frames, want, bytes.Equal) || up.composed != 20 {
		t.Error("other frames left, or", up.composed, "were composed")
	}
	if got := r.tx.used(); len(got) != 20 || got[19] != (usedEntry{76, 0}) {
		t.Error("returned", got)
	}
}

// An uplink may find that it has no room before it has a frame made or after that. The
// frame stays in the ring.
func TestAFrameThatWasMadeInVainStaysInTheRing(t *testing.T) {
	r := newNetRig(t)
	up := r.compose()
	r.send(0, frame(1, 100))
	up.full = true
	r.untouched("full", func() { drain(r.nic.step) })
	up.full, up.spare = false, true
	r.untouched("full after all", func() { drain(r.nic.step) })
	if len(r.tx.used()) != 0 || up.composed != 1 || r.nic.Dropped() != 0 {
		t.Error(up.composed, "composed,", r.nic.Dropped(), "dropped")
	}
	up.spare = false
	drain(r.nic.step)
	r.tx.want("then", usedEntry{0, 0})
	if len(r.up.frames) != 1 || !bytes.Equal(r.up.frames[0], frame(1, 100)) {
		t.Error("another frame left")
	}
}

// Memory is asked for frames of a length that the card sends, and nothing leaves of what
// is none.
func TestWhatIsNoFrameIsNotMade(t *testing.T) {
	big, l4 := tcpFrame(false, 0, 20000)
	r := newOffloadRig(t, allFeatures)
	up := r.compose()
	for i, n := range []uint32{0, netMergeHeader + MinFrame - 1, netMergeHeader + MaxBigFrame + 1} {
		r.tx.offer(uint16(i), part{0, n, false})
	}
	drain(r.nic.step)
	if up.composed != 0 || r.nic.Dropped() != 3 {
		t.Error(up.composed, "composed,", r.nic.Dropped(), "dropped")
	}
	bad := vnet(packet.VNetNeedsCsum, packet.GSOTCPv6, 54, 1448, uint16(l4), 16)
	n := copy(r.mem[testData:], join(bad, []byte{0, 0}, big))
	r.tx.offer(8, part{testData, uint32(n), false})
	drain(r.nic.step)
	r.tx.want("all", usedEntry{0, 0}, usedEntry{1, 0}, usedEntry{2, 0}, usedEntry{8, 0})
	if up.composed != 1 || up.none != 1 || len(r.up.frames) != 0 || r.nic.Dropped() != 4 {
		t.Error(up.composed, "composed,", len(r.up.frames), "left,", r.nic.Dropped(), "dropped")
	}
}

// While the card reads a frame, a vCPU rewrites the descriptors, the header and the
// features, and another resets the card. What leaves is of the length that was looked at
// and as honest as ever, and the reset waits for it.
func TestAGuestThatChangesAFrameWhileItIsReadGainsNothing(t *testing.T) {
	big, l4 := tcpFrame(false, 0, 20000)
	said := vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, 1448, uint16(l4), 16)
	for _, composes := range []bool{false, true} {
		for _, header := range [][]byte{said, vnet(packet.VNetNeedsCsum, 0, 0, 0, 0xffff, 0xffff)} {
			r := newOffloadRig(t, allFeatures)
			if composes {
				r.compose()
			}
			n := copy(r.mem[testData:], join(said, []byte{0, 0}, big))
			r.tx.offer(0, part{testData, 5000, false}, part{testData + 5000, uint32(n - 5000), false})
			reset := make(chan struct{})
			once := false
			r.nic.mem.Ensure(func(off, _ uint64) {
				if off != testData+5000 || once {
					return
				}
				once = true
				r.tx.desc(1, part{testMemory - 1, 1 << 31, false}, descNext, 0)
				copy(r.mem[testData:], header)
				r.mem[testData+netMergeHeader+12] ^= 1 // the frame's type, which was read
				r.tx.out(regFeatures, 4, 0)
				go func() { r.tx.out(regStatus, 1, 0); close(reset) }()
				r.awaited()
			})
			drain(r.nic.step)
			<-reset
			if !once {
				t.Fatal("the second part was not read")
			}
			good := bytes.Equal(header, said)
			want := join(vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, uint16(l4+32), 1448, uint16(l4), 16), []byte{0, 0}, big)
			if left := len(r.up.frames); good != (left == 1) || good && !bytes.Equal(r.up.frames[0], want) {
				t.Errorf("composes %v: of a frame behind % x %d left", composes, header, left)
			}
			if r.nic.Dropped() > 1 || good != (r.nic.Dropped() == 0) {
				t.Error(r.nic.Dropped(), "dropped")
			}
			r.tx.want("it", usedEntry{0, 0})
		}
	}
}

type quietComposer struct {
	quietUplink
	buf []byte
}

func (u *quietComposer) ComposePacket(n int, compose func([]byte) bool) error {
	if !compose(u.buf[:n]) {
		return errNone
	}
	return nil
}

func TestMakingAFrameInTheUplinksMemoryAllocatesNothing(t *testing.T) {
	f, l4 := tcpFrame(false, 0, 20000)
	r := newOffloadRig(t, allFeatures)
	r.nic.mem.mark = func(uint64, uint64) {}
	r.nic.sending.init(&quietComposer{buf: make([]byte, 1<<17)}, 12)
	n := copy(r.mem[testData:], join(vnet(packet.VNetNeedsCsum, packet.GSOTCPv4, 0, 1448, uint16(l4), 16), []byte{0, 0}, f))
	if got := testing.AllocsPerRun(100, func() {
		r.tx.desc(0, part{testData, uint32(n), false}, 0, 0)
		r.tx.push(0)
		drain(r.nic.step)
	}); got > 0 || r.nic.Dropped() > 0 {
		t.Errorf("%v allocations, %d dropped", got, r.nic.Dropped())
	}
}
