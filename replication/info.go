package replication

import (
	"math/bits"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/event"
)

// LatencyBuckets is the number of buckets of a [Latency].
const LatencyBuckets = 26

// Latency is how long requests of one kind took: Counts[i] is how many took less
// than LatencyBound(i) and not less than the bound before, the last how many
// took longer.
type Latency struct {
	Counts [LatencyBuckets]uint64 `json:"counts"`
	Sum    time.Duration          `json:"sum-ns"`
}

// LatencyBound returns the upper bound of a bucket: 1 µs, 2 µs, 4 µs, ... The last
// has none.
func LatencyBound(i int) time.Duration { return time.Microsecond << i }

// Count returns how many requests there were.
func (l *Latency) Count() (n uint64) {
	for _, c := range l.Counts {
		n += c
	}
	return n
}

// Quantile returns the upper bound of the bucket in which the fastest share q of
// the requests ends, 0 if there were none.
func (l *Latency) Quantile(q float64) time.Duration {
	want := q * float64(l.Count())
	var n uint64
	for i, c := range l.Counts {
		if n += c; c > 0 && float64(n) >= want {
			return LatencyBound(i)
		}
	}
	return 0
}

// IO is the requests of a guest of one kind.
type IO struct {
	Requests uint64  `json:"requests"`
	Errors   uint64  `json:"errors"`
	Bytes    int64   `json:"bytes"`
	InFlight int64   `json:"in-flight"` // requests that are not answered
	Latency  Latency `json:"latency"`
}

// IOInfo counts what a guest has done to a disk since the Primary or Secondary was made.
type IOInfo struct {
	Read  IO `json:"read"`
	Write IO `json:"write"` // also trims and zeroes
	Flush IO `json:"flush"`
}

// Informer is a Replicator that reports figures of its disk. DiskInfo may be called from
// any goroutine and does not wait.
type Informer interface{ DiskInfo() DiskInfo }

// DiskInfo has the figures of a disk on one side of a pair: first those that both sides
// have, then those of one side only, which are zero on the other. Sizes are in bytes,
// times in nanoseconds.
type DiskInfo struct {
	Name  string     `json:"name,omitempty"`
	Mode  event.Mode `json:"mode"`
	State string     `json:"state"` // the name of the side's State
	Size  int64      `json:"size"`
	IO    IOInfo     `json:"io"` // requests of the guest on this side

	// Dirty is how much Synchronise would copy. InFlight and InFlightBytes are the
	// writes on their way to the secondary, or queued for it; Held and HeldBytes
	// those that wait for Loaded; PrimaryInfo explains LagBytes and Lag.
	Dirty         int64         `json:"dirty-bytes"`
	InFlight      int           `json:"in-flight"`
	InFlightBytes int64         `json:"in-flight-bytes"`
	Held          int           `json:"held"`
	HeldBytes     int64         `json:"held-bytes"`
	LagBytes      int64         `json:"lag-bytes"`
	Lag           time.Duration `json:"lag-ns"`

	// Active and Hidden are what a secondary's overlays take, with their bounds. On a
	// primary, Hidden is what the writes since the last Mark take of the secondary's room,
	// as far as that is known.
	ActiveBytes int64 `json:"active-bytes"`
	ActiveBound int64 `json:"active-bound"`
	HiddenBytes int64 `json:"hidden-bytes"`
	HiddenBound int64 `json:"hidden-bound"`
}

// PrimaryInfo has the figures of a [Primary] at one moment.
type PrimaryInfo struct {
	Name     string
	Size     int64
	State    State
	Identity Identity
	IO       IOInfo
	// Dirty is how much Synchronise would copy, in bytes.
	Dirty int64
	// InFlight and InFlightBytes are the writes on their way to the secondary,
	// or queued for it; Held and HeldBytes those that wait for Loaded.
	InFlight, Held           int
	InFlightBytes, HeldBytes int64
	// LagBytes is how much was written since the last checkpoint that the secondary
	// has, in whole chunks; Lag the age of the oldest request that it has not
	// answered, or of the Mark that is not Loaded.
	LagBytes int64
	Lag      time.Duration
	// Room is how many bytes of pre-images the secondary can keep, and
	// RoomTaken how many of them the writes since the last Mark take; zero if
	// that is not known.
	Room, RoomTaken int64
}

// Info returns the present figures. Any goroutine may call it.
func (p *Primary) Info() PrimaryInfo {
	i := p.figures()
	i.Identity = p.meta.Identity()
	return i
}

// DiskInfo implements [Informer].
func (p *Primary) DiskInfo() DiskInfo {
	i := p.figures()
	return DiskInfo{
		Name: i.Name, Mode: event.ModePrimary, State: i.State.String(), Size: i.Size, IO: i.IO,
		Dirty: i.Dirty, InFlight: i.InFlight, InFlightBytes: i.InFlightBytes, Held: i.Held, HeldBytes: i.HeldBytes,
		LagBytes: i.LagBytes, Lag: i.Lag, HiddenBytes: i.RoomTaken, HiddenBound: i.Room,
	}
}

// figures returns what Info returns, but for the identity: reading that waits
// while the metadata is being written.
func (p *Primary) figures() PrimaryInfo {
	i := PrimaryInfo{
		Name: p.cfg.Name, Size: p.size.Load(), State: p.State(), IO: p.io.info(),
		Dirty: p.Dirty(), LagBytes: p.peer.epoch.Bytes() + p.peer.older.Bytes(),
	}
	if c := p.room.charged.Load(); c != nil {
		i.Room, i.RoomTaken = int64(c.max)*BlockSize, c.usedBytes()
	}
	if f := p.link.Load(); f != nil {
		f.info(&i, time.Now())
	}
	return i
}

func (f *Forwarder) info(i *PrimaryInfo, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	i.InFlight, i.Held = len(f.inflight)+len(f.queue), len(f.hold)
	i.InFlightBytes, i.HeldBytes = f.bytes, f.holding
	oldest := now
	for _, w := range f.inflight {
		if w.begun && w.sent.Before(oldest) {
			oldest = w.sent
		}
	}
	if f.flushes > 0 && f.flushAt.Before(oldest) {
		oldest = f.flushAt
	}
	if f.held && f.heldAt.Before(oldest) {
		oldest = f.heldAt
	}
	i.Lag = now.Sub(oldest)
}

// SecondaryInfo has the figures of a [Secondary] at one moment.
type SecondaryInfo struct {
	Name                     string
	Size                     int64
	State                    State
	Epoch                    uint64
	Identity                 Identity
	IO                       IOInfo
	ActiveBytes, HiddenBytes int64 // what the overlays hold
	ActiveBound, HiddenBound int64 // what they may hold
}

// Info returns the present figures. Any goroutine may call it.
func (s *Secondary) Info() SecondaryInfo {
	i := s.figures()
	i.Identity = s.Identity()
	return i
}

// DiskInfo implements [Informer].
func (s *Secondary) DiskInfo() DiskInfo {
	i := s.figures()
	return DiskInfo{
		Name: i.Name, Mode: event.ModeSecondary, State: i.State.String(), Size: i.Size, IO: i.IO,
		ActiveBytes: i.ActiveBytes, ActiveBound: i.ActiveBound, HiddenBytes: i.HiddenBytes, HiddenBound: i.HiddenBound,
	}
}

// figures returns what Info returns, but for the identity.
func (s *Secondary) figures() SecondaryInfo {
	i := SecondaryInfo{Name: s.cfg.Name, Size: s.size.Load(), IO: s.io.info()}
	i.State, i.Epoch = s.life.at()
	i.ActiveBytes, i.HiddenBytes = s.OverlayBytes()
	i.ActiveBound, i.HiddenBound = int64(s.active.max)*BlockSize, s.hiddenBound()
	return i
}

// ioStats counts the requests of a guest. The zero value is ready.
type ioStats struct{ read, write, flush ioCount }

func (s *ioStats) info() IOInfo { return IOInfo{s.read.info(), s.write.info(), s.flush.info()} }

// ioCount counts the requests of one kind.
type ioCount struct {
	begun, ended, errors atomic.Uint64
	bytes, sum           atomic.Int64
	counts               [LatencyBuckets]atomic.Uint64
}

// begin counts a request that has come.
func (c *ioCount) begin() time.Time {
	c.begun.Add(1)
	return time.Now()
}

// end counts its answer.
func (c *ioCount) end(begin time.Time, n int64, err error) {
	d := time.Since(begin)
	c.counts[min(bits.Len64(uint64(d/time.Microsecond)), LatencyBuckets-1)].Add(1)
	c.sum.Add(int64(d))
	if err != nil {
		c.errors.Add(1)
	} else {
		c.bytes.Add(n)
	}
	c.ended.Add(1)
}

func (c *ioCount) info() IO {
	ended := c.ended.Load() // before begun, so that nothing is negative
	i := IO{Requests: c.begun.Load(), Errors: c.errors.Load(), Bytes: c.bytes.Load()}
	i.InFlight = int64(i.Requests - ended)
	for k := range c.counts {
		i.Latency.Counts[k] = c.counts[k].Load()
	}
	i.Latency.Sum = time.Duration(c.sum.Load())
	return i
}
