package migrate

import (
	"sync"
	"time"
)

// firstPace is the value of the first PING of a pacer; those of the protocol are below.
const firstPace = 1 << 16

const (
	// minWindow is how many bytes may always be on their way.
	minWindow = 16 << 10
	// maxWindow bounds the bytes on their way, whatever the destination answers.
	maxWindow = 64 << 20
	// paceGain is the window, in units of what the link carries in the shortest round
	// trip.
	paceGain = 1.5
	// paceSamples is the number of answers of which the fastest gives the rate.
	paceSamples = 32
	// paceEpoch is how long a shortest round trip counts: for one to two of these.
	paceEpoch = 5 * time.Second
	// burstTurns is the number of answers in a burst after which a window of the rest is
	// sent.
	burstTurns = 16
	// burstSlack is how long a request may take to follow on an answer in a burst, beside two
	// round trips: the threads of both hosts wake up in turn.
	burstSlack = 100 * time.Microsecond
	// burstLook is how soon after an answer a burst is looked at again.
	burstLook = time.Millisecond
)

// A pacer bounds how much of the memory that nobody has asked for is on its way in postcopy,
// since a page that somebody waits for is behind it: in the buffers of both hosts and of the
// network, which hold megabytes. About once in a quarter of the window it sends a PING. The
// destination answers that in its turn, so the PONG tells that it has placed all that was sent
// before, and how long that took.
//
// The window is what the link carries in one and a half of the shortest round trips: enough
// to keep it busy. It grows for as long as more on its way brings more through.
//
// A guest that asks for a page as soon as it has the last one (a burst) is answered alone:
// the rest has its turn, a window, after burstTurns answers, and when the burst has ended.
//
// Its methods may be called from any goroutine.
type pacer struct {
	mu       sync.Mutex
	window   int64
	flying   int64 // bytes that are on their way
	unpinged int64 // of these, bytes that no PING is behind
	placed   int64 // bytes that are there
	pings    []ping
	next     uint32 // the value of the next PING

	rates [paceSamples]float64 // bytes a second
	rate  int                  // where the next one goes
	trip  [2]time.Duration     // the shortest in this epoch and in the last; 0: none
	epoch time.Time
	// probing: once in an epoch the pacer waits until everything has arrived and then
	// sends one piece, to measure the round trip without a queue. Otherwise a queue that
	// never empties would count as the length of the link.
	probing bool

	answered time.Time // when the last answer to a request was sent
	burst    bool      // requests follow on answers
	turns    int       // answers since the rest had its turn
	turn     int64     // bytes of the rest that were sent in this turn
}

// ping is a PING that has not been answered.
type ping struct {
	value  uint32
	bytes  int64 // on their way since the PING before
	at     time.Time
	placed int64 // bytes that were there at that time
	alone  bool  // no other PING was on its way
}

func newPacer() *pacer { return &pacer{window: minWindow, next: firstPace} }

// room reports whether some of the rest may be sent. Where it may not, a PONG or a request
// changes that; with wait, which is in a burst, the time does too.
func (p *pacer) room(now time.Time) (ok, wait bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if (p.flying >= p.window || p.probing) && len(p.pings) > 0 {
		return false, false
	}
	if p.burst && p.turns < burstTurns {
		p.burst = p.soon(now)
		return !p.burst, p.burst
	}
	return true, false
}

// request notes that memory was asked for.
func (p *pacer) request(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.burst = p.soon(now)
}

// soon reports whether the last answer is so fresh that a request may follow on it.
func (p *pacer) soon(now time.Time) bool {
	return now.Sub(p.answered) < 2*p.shortest()+burstSlack
}

// answer notes that what was asked for has been sent.
func (p *pacer) answer(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answered = now
	if p.turns++; p.turns == burstTurns {
		p.turn = 0
	}
}

// shortest returns the shortest round trip of late; 0: none is known.
func (p *pacer) shortest() time.Duration {
	if p.trip[0] == 0 || p.trip[1] != 0 && p.trip[1] < p.trip[0] {
		return p.trip[1]
	}
	return p.trip[0]
}

// sent counts bytes that are about to be flushed. Where a PING should be behind them it
// returns its value.
func (p *pacer) sent(n int64, now time.Time) (value uint32, due bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flying += n
	p.unpinged += n
	if p.turn += n; p.turn >= p.window {
		p.turn, p.turns = 0, 0
	}
	if p.unpinged < p.window/4 && p.flying < p.window && !p.probing {
		return 0, false
	}
	value = p.next
	if p.next++; p.next == 0 {
		p.next = firstPace
	}
	p.pings = append(p.pings, ping{value: value, bytes: p.unpinged, at: now, placed: p.placed, alone: len(p.pings) == 0})
	p.unpinged = 0
	return value, true
}

// pong takes an answer. An answer to no PING of this pacer is ignored.
func (p *pacer) pong(value uint32, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pings) == 0 || p.pings[0].value != value {
		return
	}
	first := p.pings[0]
	p.pings = append(p.pings[:0], p.pings[1:]...)
	p.flying -= first.bytes
	p.placed += first.bytes
	took := max(now.Sub(first.at), time.Microsecond) // a clock may be coarse
	if p.epoch.IsZero() || now.Sub(p.epoch) > paceEpoch {
		p.epoch, p.trip[1], p.trip[0] = now, p.trip[0], 0
		p.probing = true
	} else if first.alone {
		p.probing = false
	}
	if p.trip[0] == 0 || took < p.trip[0] {
		p.trip[0] = took
	}
	p.rates[p.rate] = float64(p.placed-first.placed) / took.Seconds()
	p.rate = (p.rate + 1) % paceSamples
	best := 0.0
	for _, r := range p.rates {
		best = max(best, r)
	}
	p.window = min(max(int64(best*p.shortest().Seconds()*paceGain), minWindow), maxWindow)
}
