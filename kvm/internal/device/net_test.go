package device

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// uplink records frames, and can be full.
type uplink struct {
	mu     sync.Mutex
	frames [][]byte
	full   bool
	refuse chan struct{} // told of a frame that was not taken
	room   chan struct{}
	sent   chan struct{}
	also   func(frame []byte)
}

func (u *uplink) WritePacket(f []byte) error {
	u.mu.Lock()
	if u.full {
		u.mu.Unlock()
		if u.refuse != nil {
			u.refuse <- struct{}{}
		}
		return errors.New("full")
	}
	u.frames = append(u.frames, bytes.Clone(f))
	u.mu.Unlock()
	if u.also != nil {
		u.also(f)
	}
	select {
	case u.sent <- struct{}{}:
	default:
	}
	return nil
}

func (u *uplink) Room() <-chan struct{} { return u.room }

type netRig struct {
	*board
	nic    *Net
	up     *uplink
	rx, tx *ring
}

func newNetRig(t testing.TB) *netRig {
	b := newBoard(t)
	up := &uplink{room: make(chan struct{}, 1), sent: make(chan struct{}, 1)}
	nic := NewNet(up, 0, [6]byte{2, 3, 4, 5, 6, 7}, b.memory(), b.line, nil)
	return &netRig{b, nic, up, newRing(b, nic, netReceive, 0x10000), newRing(b, nic, netTransmit, 0x20000)}
}

// frame returns a frame that says who it is.
func frame(i, n int) []byte {
	f := make([]byte, n)
	binary.LittleEndian.PutUint32(f, uint32(i))
	for k := 4; k < n; k++ {
		f[k] = byte(i * k)
	}
	return f
}

// send offers a frame in pieces, the header in a piece of its own.
func (r *netRig) send(head uint16, f []byte) {
	at := uint64(testData) + uint64(head)*4096
	copy(r.mem[at+netHeader:], f)
	r.tx.offer(head, part{at, netHeader, false}, part{at + netHeader, uint32(len(f) / 2), false},
		part{at + netHeader + uint64(len(f)/2), uint32(len(f) - len(f)/2), false})
}

// room offers room for a frame at descriptor head.
func (r *netRig) room(head uint16, n uint32) {
	at := uint64(testData) + uint64(head)*4096
	r.rx.offer(head, part{at, netHeader, true}, part{at + netHeader, n, true})
}

// received returns the frame in the room at head.
func (r *netRig) received(head uint16, n uint32) []byte {
	at := uint64(testData) + uint64(head)*4096 + netHeader
	return r.mem[at:][:n-netHeader]
}

func TestWhatTheGuestSendsLeavesInOrder(t *testing.T) {
	r := newNetRig(t)
	var want [][]byte
	for i := range 20 {
		f := frame(i, 60+i*70)
		want = append(want, f)
		r.send(uint16(4*i), f)
	}
	r.watch(func() { drain(r.nic.step) })
	if !slices.EqualFunc(r.up.frames, want, bytes.Equal) {
		t.Error("other frames left")
	}
	if got := r.tx.used(); len(got) != 20 || got[19] != (usedEntry{76, 0}) {
		t.Error("returned", got)
	}
	if level, _ := r.raised(); !level {
		t.Error("no interrupt")
	}
}

func TestAFrameThatTheUplinkDoesNotTakeStaysInTheRing(t *testing.T) {
	r := newNetRig(t)
	r.up.full = true
	r.send(0, frame(1, 100))
	r.untouched("full", func() {
		for range 3 {
			drain(r.nic.step)
		}
	})
	r.up.refuse = make(chan struct{})
	run(r.nic.Work, r.gate, func() {
		r.tx.kick()
		<-r.up.refuse
		r.up.mu.Lock()
		r.up.full = false
		r.up.mu.Unlock()
		r.up.room <- struct{}{}
		<-r.up.sent
	})
	r.tx.want("then", usedEntry{0, 0})
	if len(r.up.frames) != 1 || !bytes.Equal(r.up.frames[0], frame(1, 100)) {
		t.Error("another frame left")
	}
}

// A frame that waits in the ring is state, and sent by the host that has loaded it.
func TestAFrameThatHasNotLeftIsSentByAnother(t *testing.T) {
	r, twin := newNetRig(t), newNetRig(t)
	r.up.full = true
	r.send(0, frame(1, 100))
	drain(r.nic.step)
	copy(twin.mem, r.mem)
	must(t, load(twin.nic, stream(t, r.nic)))
	twin.nic.Kick()
	select {
	case <-twin.nic.work:
		drain(twin.nic.step)
	default:
		t.Error("nobody looks for what is to be sent")
	}
	twin.tx.want("there", usedEntry{0, 0})
	if len(twin.up.frames) != 1 || !bytes.Equal(twin.up.frames[0], frame(1, 100)) {
		t.Error("another frame left")
	}
}

func TestWhatIsNoFrameIsDroppedAndReturned(t *testing.T) {
	r := newNetRig(t)
	for i, n := range []uint32{0, netHeader, netHeader + MinFrame - 1, netHeader + MaxFrame + 1} {
		r.tx.offer(uint16(i), part{0, n, false})
	}
	r.send(8, frame(1, 60))
	drain(r.nic.step)
	r.tx.want("all", usedEntry{0, 0}, usedEntry{1, 0}, usedEntry{2, 0}, usedEntry{3, 0}, usedEntry{8, 0})
	if len(r.up.frames) != 1 || r.nic.Dropped() != 4 {
		t.Error(len(r.up.frames), "frames left,", r.nic.Dropped(), "dropped")
	}
}

func TestWhatTheGuestReceivesWaitsForRoom(t *testing.T) {
	r := newNetRig(t)
	for i := range 4 {
		must(t, r.nic.Receive(r.gate, frame(i, 60+i)))
	}
	if level, _ := r.raised(); level {
		t.Error("an interrupt without a frame in the ring")
	}
	r.watch(func() {})
	r.room(0, 1514)
	r.room(4, 1514)
	r.watch(func() { r.rx.kick() })
	r.rx.want("as many as there is room for", usedEntry{0, netHeader + 60}, usedEntry{4, netHeader + 61})
	for i, head := range []uint16{0, 4} {
		if got := r.received(head, netHeader+60+uint32(i)); !bytes.Equal(got, frame(i, 60+i)) {
			t.Errorf("frame %d is %x", i, got)
		}
	}
	if level, _ := r.raised(); !level {
		t.Error("no interrupt")
	}
	// A later one does not overtake those that wait.
	r.room(8, 1514)
	must(t, r.nic.Receive(r.gate, frame(9, 99)))
	r.rx.want("the next", usedEntry{8, netHeader + 62})
}

func TestAFrameThatDoesNotFitItsRoomIsDropped(t *testing.T) {
	r := newNetRig(t)
	r.room(0, 64)
	must(t, r.nic.Receive(r.gate, frame(1, 65)))
	must(t, r.nic.Receive(r.gate, frame(2, 64)))
	r.rx.want("the one that fits", usedEntry{0, netHeader + 64})
	if r.nic.Dropped() != 1 {
		t.Error(r.nic.Dropped(), "dropped")
	}
}

func TestACardThatIsFullSaysSo(t *testing.T) {
	r := newNetRig(t)
	n := 0
	for ; ; n++ {
		err := r.nic.Receive(r.gate, frame(n, 1500))
		if errors.Is(err, ErrFull) {
			break
		}
		must(t, err)
	}
	if n != netQueued/(1500+frameOver) || r.nic.Dropped() != 1 {
		t.Errorf("%d frames of 1500 bytes wait, %d dropped", n, r.nic.Dropped())
	}
	for _, bad := range []int{0, MinFrame - 1, MaxFrame + 1} {
		if err := r.nic.Receive(r.gate, make([]byte, bad)); !errors.Is(err, ErrFrame) {
			t.Errorf("a frame of %d bytes: %v", bad, err)
		}
	}
	// All of it arrives, through a ring that is too small for it.
	for i := 0; i < n; i++ {
		head := uint16(i % 4 * 2)
		r.room(head, 1514)
		r.rx.kick()
		r.rx.want("next", usedEntry{uint32(head), netHeader + 1500})
		if got := r.received(head, netHeader+1500); !bytes.Equal(got, frame(i, 1500)) {
			t.Fatal("frame", i)
		}
	}
}

func TestAPausedCardTouchesNothingAndLosesNothing(t *testing.T) {
	r := newNetRig(t)
	for i := range 8 {
		r.room(uint16(4*i), 1514)
	}
	must(t, r.nic.Receive(r.gate, frame(0, 60)))
	r.rx.used()
	must(t, r.gate.Close(t.Context()))
	_, rises := r.raised()
	r.untouched("paused", func() {
		for i := range 3 {
			must(t, r.nic.Receive(r.gate, frame(1+i, 70)))
		}
	})
	if _, n := r.raised(); n != rises {
		t.Error("an interrupt from a paused card")
	}
	saved := stream(t, r.nic)

	// The twin has the same memory, and the frames that wait.
	twin := newNetRig(t)
	copy(twin.mem, r.mem)
	twin.rx.seen = r.rx.seen
	must(t, load(twin.nic, saved))
	for _, side := range []*netRig{r, twin} {
		side.gate.Open()
		side.watch(side.nic.Kick)
		side.rx.want("after the pause", usedEntry{4, netHeader + 70}, usedEntry{8, netHeader + 70}, usedEntry{12, netHeader + 70})
		if got := side.received(12, netHeader+70); !bytes.Equal(got, frame(3, 70)) {
			t.Errorf("%x", got)
		}
	}
	if !bytes.Equal(r.mem, twin.mem) {
		t.Error("the twins' memories differ")
	}
}

// A network that answers on the spot calls the card from within its own call.
func TestAnUplinkMayAnswerAtOnce(t *testing.T) {
	r := newNetRig(t)
	r.up.also = func(f []byte) { must(t, r.nic.Receive(r.gate, f)) }
	r.room(0, 1514)
	r.send(0, frame(5, 80))
	drain(r.nic.step)
	r.rx.want("its own frame", usedEntry{0, netHeader + 80})
}

func TestACardWithoutAnAddressOffersNone(t *testing.T) {
	b := newBoard(t)
	nic := NewNet(&uplink{}, 0, [6]byte{}, b.memory(), b.line, nil)
	r := newRing(b, nic, 0, 0x10000)
	if r.in(regOffered, 4)&netMAC != 0 {
		t.Error("it offers an address")
	}
	with := newNetRig(t)
	if with.rx.in(regOffered, 4)&netMAC == 0 || with.rx.in(regConfig+4, 2) != 0x0706 || with.rx.in(regConfig+6, 2) != 1 {
		t.Error("address or link status")
	}
	if err := load(nic, stream(t, with.nic)); err == nil {
		t.Error("the state of a card with another address is taken")
	}
}

func TestACardAllocatesNothing(t *testing.T) {
	r := newNetRig(t)
	r.nic.mem.mark = func(uint64, uint64) {}
	quiet := quietUplink{}
	r.nic.sending.init(quiet, 0)
	f := frame(1, 1400)
	copy(r.mem[testData+netHeader:], f)
	if n := testing.AllocsPerRun(1000, func() {
		r.tx.desc(0, part{testData, netHeader + 1400, false}, 0, 0)
		r.tx.push(0)
		for r.nic.step() {
		}
	}); n > 0 {
		t.Errorf("send: %v allocations", n)
	}
	if n := testing.AllocsPerRun(1000, func() {
		r.rx.desc(0, part{testData, netHeader + 1400, true}, 0, 0)
		r.rx.push(0)
		if err := r.nic.Receive(r.gate, f); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("receive: %v allocations", n)
	}
}

type quietUplink struct{}

func (quietUplink) WritePacket([]byte) error { return nil }
func (quietUplink) Room() <-chan struct{}    { return nil }

func TestWorkOfACardEndsWithItsContext(t *testing.T) {
	r := newNetRig(t)
	must(t, r.gate.Close(t.Context()))
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.nic.Work(ctx, r.gate) })
	r.tx.kick() // it now waits at the gate, or is about to
	stop()
	wg.Wait()
}

// While a vCPU waits for the frame that is being sent, to reset the card, no other frame is begun: the vCPU
// would wait for as long as another one goes on sending.
func TestAResetWaitsForOneFrameAlone(t *testing.T) {
	r := newNetRig(t)
	for i := range 20 {
		r.send(uint16(4*i), frame(i, 60))
	}
	reset := make(chan struct{})
	var once sync.Once
	r.up.also = func([]byte) {
		once.Do(func() {
			go func() { r.tx.out(regStatus, 1, 0); close(reset) }()
			r.awaited()
		})
	}
	drain(r.nic.step)
	<-reset
	if n := len(r.up.frames); n != 1 {
		t.Errorf("%d frames have left, of which one was begun", n)
	}
}

// A vCPU that takes the other queue elsewhere meanwhile holds up the frames that are left, and no longer than
// that.
func TestWhatWasHeldUpByACallThatWaitsIsSentAfterIt(t *testing.T) {
	r := newNetRig(t)
	for i := range 20 {
		r.send(uint16(4*i), frame(i, 60))
	}
	r.nic.notify(netTransmit)
	placed := make(chan struct{})
	var once sync.Once
	r.up.also = func([]byte) {
		once.Do(func() {
			go func() {
				r.rx.out(regSelect, 2, netReceive)
				r.rx.out(regPFN, 4, 0x10000/queueAlign)
				close(placed)
			}()
			r.awaited()
		})
	}
	run(r.nic.Work, r.gate, func() {
		<-placed
		for sent := 0; sent < 20; {
			<-r.up.sent
			r.up.mu.Lock()
			sent = len(r.up.frames)
			r.up.mu.Unlock()
		}
	})
}

// awaited returns when a call waits for what the card has begun.
func (r *netRig) awaited() {
	for held := 0; held == 0; runtime.Gosched() {
		r.nic.mu.Lock()
		held = r.nic.held
		r.nic.mu.Unlock()
	}
}

// A frame that its ring will never have room for is dropped, and says nothing of one as long that finds another
// ring, because a shorter one has been taken in between.
func TestAFrameForWhichThereIsRoomIsNotDroppedWithOneForWhichThereIsNone(t *testing.T) {
	r := newNetRig(t)
	closed := NewGate()
	want := [][]byte{frame(2, 60), frame(3, 1000)}
	for _, f := range [][]byte{frame(1, 1000), want[0], want[1]} {
		must(t, r.nic.Receive(closed, f))
	}
	r.room(0, 100)
	r.room(4, 1500)
	r.rx.kick()
	got := r.rx.used()
	if len(got) != 2 || r.nic.Dropped() != 1 {
		t.Fatalf("%d frames have arrived, want 2; %d are dropped, want 1", len(got), r.nic.Dropped())
	}
	for i, u := range got {
		if f := r.received(uint16(u.head), u.n); !bytes.Equal(f, want[i]) {
			t.Errorf("frame %d is %d bytes that begin with % x", i, len(f), f[:4])
		}
	}
}
