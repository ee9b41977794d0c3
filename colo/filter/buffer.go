package filter

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
)

// BufferConfig configures a [Buffer]. The zero value is usable.
type BufferConfig struct {
	// Limit bounds the memory for the guest's packets, in bytes; each packet counts four
	// bytes more than its length. Zero is 16 MiB. A limit below four frames of the
	// greatest length is raised to that. Both hosts have the same limit.
	Limit int

	// Soft is how much the guest may send in one epoch, in bytes, before Full
	// is called. Zero is half of Limit.
	Soft int

	// Full is called at most once in an epoch, when the guest's output has
	// exceeded Soft or met Limit: it is time for a checkpoint. It is called
	// from within WritePacket or ComposePacket and must not block or call the Buffer;
	// RequestCheckpoint of a colo.Primary is what it is for.
	Full func()

	// Now is the clock; nil: time.Now. It is asked when a packet comes and when it
	// has left.
	Now func() time.Time
}

// A Buffer holds the guest's output until the other side has received the checkpoint that
// covers it (output commit). So the guest of the side that goes on remembers whatever the
// world has seen.
//
// The guest's NIC calls WritePacket, which never waits for the network. Run,
// on a goroutine of the caller, writes what may leave, in order, as fast as
// the network takes it. The steps of the checkpoints decide which packets may leave:
//
//   - Primary (colo.PrimaryNetwork). Before Mark(0) packets pass. From then on
//     they are held: Mark(e) ends epoch e, Received(e) lets its packets leave.
//   - Secondary (colo.SecondaryNetwork). From the first Commit on everything
//     is held, and each Commit drops it: the guest that said it has been
//     rolled back.
//   - Failover, on either side: all that is held leaves, then packets pass.
//
// One Buffer serves a guest in both roles, because a secondary that has taken
// over may become a primary.
//
// A Buffer is also a vmstate.Device. Packets of an epoch may be released and
// not yet written when their host dies. So the section of a checkpoint carries
// every packet before the mark that has not left, and a secondary that takes
// over sends them, before its own. Some may then leave twice, which a network
// does anyway; none is missing from what the guest remembers to have sent.
//
// All methods may be called from any goroutine, except that a checkpoint's
// steps and the device's state belong to one at a time.
type Buffer struct {
	cfg  BufferConfig
	wake chan struct{} // capacity 1: wakes Run: a packet may leave
	room chan struct{} // capacity 1: see Room

	drafts sync.Mutex // held while a packet is composed

	mu       sync.Mutex
	mode     bufferMode
	own      ring         // the guest's output that has not left
	taken    tally        // packets that were put into own, ever
	freed    tally        // how many of them may leave
	gone     tally        // how many of them have left, or were dropped
	inherits image        // packets of the primary's guest, as of the last commit, that leave before own
	at       int          // how much of inherits.data has left, in bytes
	since    time.Time    // when the first packet after freed was taken, if no mark is between
	marks    []bufferMark // epochs that have ended and are not received, ascending
	next     uint64       // the next epoch to be marked or committed
	epoch    int          // memory taken since the last mark, in bytes
	asked    bool         // Full was called in this epoch
	wants    int          // the length of the packet that was refused; 0: none
	flying   flight       // what Run is writing
	stats    BufferStats  // the counts that only grow
	dates    dates        // when the packets in own were taken
	left     event.Latency

	saved  image // what PreSave gathered; belongs to the goroutine that saves
	staged image // loaded and not yet committed; belongs to the one that loads
}

// bufferMode says where a Buffer sends the packets that it takes.
type bufferMode uint8

const (
	passing    bufferMode = iota // no session
	holding                      // on a primary
	rolledBack                   // on a secondary: the next commit drops its output
)

// bufferMark is the mark of a checkpoint between the packets.
type bufferMark struct {
	epoch  uint64
	before tally // how many packets were taken before the mark

	since time.Time // when the first packet after the mark was taken, if no later mark is between; else zero
}

// A tally counts packets, and bytes of packets.
type tally struct{ n, bytes uint64 }

func (t *tally) add(p int) { t.n++; t.bytes += uint64(p) }

// flight is where the packet came from that Run is writing without the lock.
type flight uint8

const (
	landed    flight = iota
	inherited        // inherits.data[at:]
	owned            // own.front()
	orphaned         // no place any more: it was dropped meanwhile
)

// BufferStats counts packets, and bytes of packets. What is not "now" is since
// the Buffer was made.
type BufferStats struct {
	Held, HeldBytes           uint64 // now: may not leave yet
	Queued, QueuedBytes       uint64 // now: may leave and have not
	Inherited, InheritedBytes uint64 // now: packets of the primary's guest, which leave if this side takes over
	Written, WrittenBytes     uint64 // packets that have left, and their bytes
	Dropped, DroppedBytes     uint64 // were dropped by a commit, since their guest was rolled back
	Refused                   uint64 // packets for which WritePacket or ComposePacket returned ErrFull
	Asked                     uint64 // how often Full was called
}

// NewBuffer returns a Buffer through which packets pass.
func NewBuffer(cfg BufferConfig) *Buffer {
	if cfg.Limit == 0 {
		cfg.Limit = 16 << 20
	}
	cfg.Limit = max(cfg.Limit, 4*slot(MaxFrame)) &^ 3
	if cfg.Soft == 0 {
		cfg.Soft = cfg.Limit / 2
	}
	b := &Buffer{cfg: cfg, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	if b.cfg.Now == nil {
		began := time.Now()
		b.cfg.Now = func() time.Time { return began.Add(time.Since(began)) } // half the price: it does not read the time of day
	}
	b.own.limit = cfg.Limit
	return b
}

// WritePacket takes a copy of the packet p. It never waits. If there is no room
// it returns [ErrFull] and has taken nothing: the device keeps the packet, as a
// real one would when its ring is full, and tries again after [Buffer.Room]. A
// packet that is empty or longer than [MaxFrame] is an [*Error].
func (b *Buffer) WritePacket(p []byte) error {
	if err := checkLength(len(p)); err != nil {
		return err
	}
	b.mu.Lock()
	return b.note(len(p), b.fits(len(p)) && b.own.push(p))
}

// checkLength refuses packets that a Buffer cannot hold.
func checkLength(n int) error {
	switch {
	case n <= 0:
		return &Error{Op: "buffer", Offset: -1, Err: ErrFrame}
	case n > MaxFrame:
		return &Error{Op: "buffer", Offset: -1, Err: ErrFrameTooBig}
	}
	return nil
}

// note notes that a packet of n bytes was taken or refused. It unlocks b.mu, which is held.
func (b *Buffer) note(n int, taken bool) error {
	full := false
	if taken {
		now := b.cfg.Now()
		b.dates.push(now)
		b.date(now)
		b.taken.add(n)
		b.epoch += slot(n)
		if b.mode == passing {
			b.freed = b.taken
		}
		full = b.mode != passing && b.epoch > b.cfg.Soft
	} else {
		b.stats.Refused++
		b.wants = n
		full = b.mode != passing && b.taken != b.freed // a checkpoint would help
	}
	full = full && !b.asked
	if full {
		b.asked = true
		b.stats.Asked++
	}
	passes := b.mode == passing
	b.mu.Unlock()
	if passes {
		signal(b.wake)
	}
	if full && b.cfg.Full != nil {
		b.cfg.Full()
	}
	if !taken {
		return ErrFull
	}
	return nil
}

// date notes when the first packet after a mark is taken. Packets are released up to a
// mark, so the oldest packet that is held is always one of these.
func (b *Buffer) date(now time.Time) {
	k := len(b.marks)
	switch {
	case b.mode == passing:
	case k > 0 && b.marks[k-1].before == b.taken:
		b.marks[k-1].since = now
	case k == 0 && b.freed == b.taken:
		b.since = now
	}
}

// oldest returns when the oldest packet that is held was taken. At least one must be held.
func (b *Buffer) oldest() time.Time {
	at := b.since
	for i := 0; at.IsZero() && i < len(b.marks); i++ {
		at = b.marks[i].since
	}
	return at
}

// HeldOutput returns the sum of what the guest has sent and may not leave yet: on a
// primary, what no checkpoint covers; on a secondary, what its guest has sent since the
// last commit. Packets that wait only for the network, and inherited ones, do not count;
// [Buffer.Stats] has them. It makes a Buffer a colo.OutputHolder.
func (b *Buffer) HeldOutput() event.HeldOutput {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.taken == b.freed {
		return event.HeldOutput{}
	}
	return event.HeldOutput{
		Packets: int(b.taken.n - b.freed.n), Bytes: int64(b.taken.bytes - b.freed.bytes),
		Age: max(0, b.cfg.Now().Sub(b.oldest())),
	}
}

// Room returns a channel that receives a value when there is room again for a packet that
// WritePacket or ComposePacket refused. A device that finds the buffer full receives from it and tries
// again. The channel is the same every time and is never closed.
func (b *Buffer) Room() <-chan struct{} { return b.room }

// fits reports whether a packet of n bytes may be taken. Inherited packets that may leave
// count too, so that a slow network and one failover after the other cannot add up without
// bound.
func (b *Buffer) fits(n int) bool {
	if b.mode != rolledBack && b.own.used()+slot(n)+b.inherits.left(b.at) > b.cfg.Limit {
		return false
	}
	return b.own.fits(n)
}

// Mark ends an epoch: the guest is paused, and what it has sent belongs to
// epoch. Epochs are marked in order. Mark(0) begins a session; holding begins
// with it, for what is sent after it. Anything else is an [*Error] with
// [ErrEpoch].
func (b *Buffer) Mark(epoch uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case epoch == 0 && b.mode == passing:
		// What was sent before the session may leave, as it always could.
		b.mode = holding
	case epoch == 0 && b.mode == holding:
		// The session before this one ended without a failover: this one covers what it
		// held.
		b.since = b.oldest()
		b.marks = b.marks[:0]
	case b.mode != holding || epoch != b.next:
		return b.order("mark", epoch)
	}
	b.next = epoch + 1
	b.marks = append(b.marks, bufferMark{epoch: epoch, before: b.taken})
	b.epoch, b.asked = 0, false
	return nil
}

// Received lets everything leave that was sent before the mark of epoch. If epoch is not
// marked, or was received before, it returns an [*Error] with [ErrEpoch].
func (b *Buffer) Received(epoch uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, m := range b.marks {
		if m.epoch != epoch {
			continue
		}
		b.marks = append(b.marks[:0], b.marks[i+1:]...)
		b.freed, b.since = m.before, m.since
		signal(b.wake)
		return nil
	}
	return b.order("received", epoch)
}

// Loaded says that the secondary's guest runs from the checkpoint of epoch. A Buffer does
// nothing then; for an epoch that was not received it returns an [*Error] with [ErrEpoch].
func (b *Buffer) Loaded(epoch uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mode != holding || epoch >= b.next || len(b.marks) > 0 && b.marks[0].epoch <= epoch {
		return b.order("loaded", epoch)
	}
	return nil
}

// Commit says that the guest has got the state of the primary's guest of epoch: what it
// sent before is void, and it inherits the packets that PostLoad has brought. Epochs are
// committed in order, from the one that a session begins with; anything else is an
// [*Error] with [ErrEpoch].
func (b *Buffer) Commit(epoch uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.next != 0 && epoch != 0 && epoch != b.next {
		return b.order("commit", epoch)
	}
	b.mode = rolledBack
	b.next = epoch + 1
	b.stats.Dropped += b.taken.n - b.gone.n
	b.stats.DroppedBytes += b.taken.bytes - b.gone.bytes
	b.freed, b.gone, b.since = b.taken, b.taken, time.Time{}
	b.own.clear(b.flying == owned)
	b.dates.clear()
	if b.flying == owned {
		b.flying = orphaned
	}
	b.marks = b.marks[:0]
	b.epoch, b.asked = 0, false
	b.offer()
	return nil
}

// Resumed says that the secondary's guest runs. A Buffer does nothing then; for an epoch
// that is not the one committed it returns an [*Error] with [ErrEpoch].
func (b *Buffer) Resumed(epoch uint64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mode != rolledBack || epoch+1 != b.next {
		return b.order("resumed", epoch)
	}
	return nil
}

// Failover says that this side goes on alone: the inherited packets leave, then those that
// are held, in order, and from now on packets pass.
func (b *Buffer) Failover() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mode = passing
	b.marks = b.marks[:0]
	b.next = 0
	b.freed, b.since = b.taken, time.Time{}
	signal(b.wake)
	return nil
}

func (b *Buffer) order(op string, epoch uint64) error {
	return &Error{Op: fmt.Sprintf("%s %d", op, epoch), Offset: -1, Err: ErrEpoch}
}

// Run writes what may leave to out, oldest first, one packet at a time, until
// ctx ends or a write fails; it returns the context's cause or an [*Error] that
// wraps the error of out. It starts no goroutine, and is called once at a time.
// The packet whose write failed is the first of the next Run. A write that
// blocks is ended by closing what out writes to.
func (b *Buffer) Run(ctx context.Context, out PacketWriter) error {
	for ctx.Err() == nil {
		p := b.takeOff()
		if p == nil {
			select {
			case <-ctx.Done():
			case <-b.wake:
			}
			continue
		}
		err := out.WritePacket(p)
		b.land(len(p), err == nil)
		if err != nil {
			return &Error{Op: "release", Offset: -1, Err: err}
		}
	}
	return context.Cause(ctx)
}

// Void reports whether the packet that Run is writing was dropped by a Commit or a load
// meanwhile. A PacketWriter that has to wait before it writes calls it when it has waited,
// and returns nil for such a packet without having written it.
func (b *Buffer) Void() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.flying == orphaned
}

// takeOff returns the next packet that may leave, nil if there is none. The packet stays
// in the Buffer until land is called.
func (b *Buffer) takeOff() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.mode == rolledBack:
	case b.inherits.left(b.at) > 0:
		b.flying = inherited
		return b.inherits.frame(b.at)
	case b.freed != b.gone:
		b.flying = owned
		return b.own.front()
	}
	return nil
}

// land ends what takeOff began: it removes the packet, which has n bytes, if it was
// written.
func (b *Buffer) land(n int, written bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	was := b.flying
	b.flying = landed
	if !written {
		return
	}
	b.stats.Written++
	b.stats.WrittenBytes += uint64(n)
	switch was {
	case inherited:
		b.at += 4 + n
		b.inherits.frames--
		if b.inherits.left(b.at) == 0 {
			b.inherits, b.at = image{}, 0
		}
	case owned:
		b.own.pop()
		b.gone.add(n)
		b.left.Add(b.cfg.Now().Sub(b.dates.pop()))
	}
	b.offer()
}

// offer wakes a device whose packet was refused, if there is room for that packet now.
func (b *Buffer) offer() {
	if b.wants > 0 && b.fits(b.wants) {
		b.wants = 0
		signal(b.room)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// OutputLatency returns how long the packets that have left were kept, from when the
// guest sent them until the network had taken them: a duration is never too short,
// and too long by at most 50 µs or a hundredth of the longest time that a packet
// waited beside it. Inherited packets do not count: only the other host knows when
// they were sent.
func (b *Buffer) OutputLatency() event.Latency {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.left
}

// Stats returns the present counts.
func (b *Buffer) Stats() BufferStats {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.stats
	s.Held, s.HeldBytes = b.taken.n-b.freed.n, b.taken.bytes-b.freed.bytes
	s.Queued, s.QueuedBytes = b.freed.n-b.gone.n, b.freed.bytes-b.gone.bytes
	s.Inherited = uint64(b.inherits.frames)
	s.InheritedBytes = uint64(b.inherits.left(b.at)) - 4*s.Inherited
	return s
}
