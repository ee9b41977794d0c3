package migrate

import (
	"math/rand/v2"
	"testing"
	"time"
)

// A road is a link of so many bytes a second, whose other end answers a PING when all in
// front of it has come, a trip later.
type road struct {
	rate  float64
	trip  time.Duration
	now   time.Time
	free  time.Time // when it has carried what was put on it
	pongs []pong    // that will come
	sent  int64
	most  time.Duration // the longest that a byte has waited for those in front of it
}

type pong struct {
	value uint32
	at    time.Time
}

// run has a pacer use the road for so long.
func (r *road) run(p *pacer, d time.Duration) {
	for end := r.now.Add(d); r.now.Before(end); {
		if ok, _ := p.room(r.now); ok {
			const n = 16<<10 + 50
			if r.free.Before(r.now) {
				r.free = r.now
			}
			r.most = max(r.most, r.free.Sub(r.now))
			r.free = r.free.Add(time.Duration(n / r.rate * 1e9))
			r.sent += n
			if v, due := p.sent(n, r.now); due {
				r.pongs = append(r.pongs, pong{v, r.free.Add(r.trip)})
			}
			r.now = r.now.Add(time.Microsecond)
			continue
		}
		if len(r.pongs) == 0 {
			panic("nothing is on its way, and nothing may be sent")
		}
		r.now = r.pongs[0].at
		p.pong(r.pongs[0].value, r.now)
		r.pongs = r.pongs[1:]
	}
}

func TestThePacerKeepsALinkBusyAndItsQueueShort(t *testing.T) {
	for name, r := range map[string]*road{
		"a gigabit in a rack":           {rate: 125e6, trip: 100 * time.Microsecond},
		"ten gigabits in a data centre": {rate: 1250e6, trip: 400 * time.Microsecond},
		"a gigabit between two cities":  {rate: 125e6, trip: 20 * time.Millisecond},
		"ten megabits":                  {rate: 1.25e6, trip: 5 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPacer()
			r.now = time.Unix(1, 0)
			r.run(p, 2*time.Second) // it learns
			sent := r.sent
			r.most = 0
			r.run(p, time.Second)
			if used := float64(r.sent-sent) / r.rate; used < 0.95 {
				t.Errorf("it uses %.2f of the link", used)
			}
			piece := time.Duration(16 << 10 / r.rate * 1e9)
			if most := r.trip + 4*piece; r.most > most {
				t.Errorf("a byte waits %v for others, want at most %v", r.most, most)
			}
		})
	}
}

func TestThePacerFollowsALinkThatChanges(t *testing.T) {
	p := newPacer()
	r := &road{rate: 125e6, trip: 100 * time.Microsecond, now: time.Unix(1, 0)}
	r.run(p, time.Second)
	r.trip = 10 * time.Millisecond
	r.run(p, 3*paceEpoch)
	sent := r.sent
	r.run(p, time.Second)
	if used := float64(r.sent-sent) / r.rate; used < 0.9 {
		t.Errorf("it uses %.2f of a link that has become longer", used)
	}
	r.rate = 12.5e6
	r.run(p, 3*paceEpoch)
	r.most = 0
	r.run(p, time.Second)
	if r.most > 2*r.trip {
		t.Errorf("a byte waits %v on a link that has become slower", r.most)
	}
}

func TestThePacerIsNeverStuck(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	p := newPacer()
	now := time.Unix(1, 0)
	var pings []uint32
	for range 100000 {
		now = now.Add(time.Duration(r.Int64N(int64(time.Second))) >> r.IntN(30))
		ok, wait := p.room(now)
		if !ok && !wait && len(pings) == 0 {
			t.Fatalf("nothing will let it go on: %+v", p)
		}
		switch n := r.IntN(8); {
		case ok && n < 5:
			if v, due := p.sent(r.Int64N(4<<20)>>r.IntN(12), now); due {
				pings = append(pings, v)
			}
		case n == 5:
			p.request(now)
		case n == 6:
			p.answer(now)
		case len(pings) > 0:
			p.pong(pings[0], now)
			pings = pings[1:]
		}
	}
	for _, v := range pings {
		p.pong(v, now)
	}
	if p.flying != p.unpinged {
		t.Errorf("%d bytes are on their way, %d without a PING, when all was answered", p.flying, p.unpinged)
	}
}

func TestAPongThatWasNotAskedForMovesNoWindow(t *testing.T) {
	p := newPacer()
	now := time.Unix(1, 0)
	v, due := p.sent(minWindow, now)
	if ok, _ := p.room(now); ok || !due {
		t.Fatal("more than a window is on its way")
	}
	for _, other := range []uint32{0, 3, v + 1, v - 1, ^uint32(0)} {
		p.pong(other, now.Add(time.Millisecond))
	}
	if ok, _ := p.room(now); ok {
		t.Error("a PONG of nothing opens the window")
	}
	p.pong(v, now.Add(time.Millisecond))
	if ok, _ := p.room(now); !ok {
		t.Error("its own PONG does not open it")
	}
	p.pong(v, now.Add(2*time.Millisecond))
	if p.flying != 0 {
		t.Errorf("%d bytes are on their way after the same PONG twice", p.flying)
	}
}

func TestInABurstTheRestHasItsTurnNowAndThen(t *testing.T) {
	p := newPacer()
	now := time.Unix(1, 0)
	tick := func(d time.Duration) { now = now.Add(d) }
	send := func() (ok bool) {
		if ok, _ = p.room(now); ok {
			v, due := p.sent(walk, now)
			tick(50 * time.Microsecond)
			if due {
				p.pong(v, now)
			}
		}
		return ok
	}
	send()
	rested, turns := 0, 0
	for range 10 * burstTurns {
		p.request(now)
		p.answer(now)
		tick(20 * time.Microsecond) // the next page is missed soon
		if ok, wait := p.room(now); !ok && wait {
			rested++
		} else if send() {
			turns++
		}
	}
	if want := 10 * (burstTurns - 1); rested < want-burstTurns || rested > want+burstTurns || turns == 0 {
		t.Errorf("the rest stood back %d times of %d, and was sent %d times", rested, 10*burstTurns, turns)
	}
	p.request(now)
	p.answer(now)
	tick(time.Millisecond)
	if ok, _ := p.room(now); !ok {
		t.Error("the rest does not go on after the burst")
	}
	// Requests that are far apart are no burst.
	for range 5 {
		p.request(now)
		p.answer(now)
		if ok, _ := p.room(now); !ok {
			t.Error("the rest stands back for a guest that seldom asks")
		}
		tick(10 * time.Millisecond)
	}
}

// walk is about what one section of the rest has.
const walk = 16 << 10
