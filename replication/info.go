package replication

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// LatencyBuckets is the number of buckets of a [Latency].
const LatencyBuckets = 26

// Latency is how long requests of one kind took: Counts[i] is how many took less
// than LatencyBound(i) and not less than the bound before, the last how many
// took longer.
type Latency struct {
	Counts [LatencyBuckets]uint64
	Sum    time.Duration
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
	Requests, Errors uint64
	Bytes            int64
	InFlight         int64 // requests that are not answered
	Latency          Latency
}

// IOInfo is what a guest has done to a disk since it was made.
type IOInfo struct {
	Read, Write, Flush IO // Write: also trims and zeroes
}

// PrimaryInfo is a moment of a [Primary].
type PrimaryInfo struct {
	Name     string
	Size     int64
	State    State
	Identity Identity
	IO       IOInfo
	// Dirty is what Synchronise would copy, in bytes.
	Dirty int64
	// InFlight and InFlightBytes are the writes on their way to the secondary,
	// or queued for it; Held and HeldBytes those that wait for Loaded.
	InFlight, Held           int
	InFlightBytes, HeldBytes int64
	// LagBytes is what was written since the last checkpoint that the secondary
	// has, in whole chunks; Lag the age of the oldest request that it has not
	// answered, or of the Mark that is not Loaded.
	LagBytes int64
	Lag      time.Duration
	// Room and RoomTaken are the secondary's for pre-images, in bytes; zero if
	// it is not known.
	Room, RoomTaken int64
}

// Info returns what is to be said of the disk now. Any goroutine may ask.
func (p *Primary) Info() PrimaryInfo {
	i := PrimaryInfo{
		Name: p.cfg.Name, Size: p.size.Load(), State: p.State(), Identity: p.meta.Identity(), IO: p.io.info(),
		Dirty: p.peer.dirty.Bytes(), LagBytes: p.peer.epoch.Bytes() + p.peer.older.Bytes(),
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

// SecondaryInfo is a moment of a [Secondary].
type SecondaryInfo struct {
	Name                     string
	Size                     int64
	State                    State
	Epoch                    uint64
	Identity                 Identity
	IO                       IOInfo
	ActiveBytes, HiddenBytes int64 // what the overlays take
	ActiveBound, HiddenBound int64 // and may
}

// Info returns what is to be said of the disk now. Any goroutine may ask.
func (s *Secondary) Info() SecondaryInfo {
	i := SecondaryInfo{Name: s.cfg.Name, Size: s.size.Load(), Identity: s.Identity(), IO: s.io.info()}
	i.State, i.Epoch = s.life.at()
	i.ActiveBytes, i.HiddenBytes = s.OverlayBytes()
	i.ActiveBound, i.HiddenBound = int64(s.active.max)*BlockSize, s.hiddenBound()
	return i
}

// ioStats counts the requests of a guest. The zero value is ready.
type ioStats struct{ read, write, flush ioCount }

func (s *ioStats) info() IOInfo { return IOInfo{s.read.info(), s.write.info(), s.flush.info()} }

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
