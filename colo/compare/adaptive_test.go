package compare_test

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// A workload says how many requests clients make of a pair, and how long its checkpoints take.
type workload struct {
	flows  int
	random int           // of which the guests never agree about the answers
	every  time.Duration // from an answer to the next question, the round trip to the client included
	pause  time.Duration // for a checkpoint; the guests stand still
	send   time.Duration // then, to its receipt
	load   time.Duration // then, until the secondary's guest runs from it
	late   time.Duration // how much later the secondary's guest answers
	noise  float64       // each of those takes up to so many times longer, or is so many times as short
	delay  time.Duration // of output commit: from the end of a checkpoint to the next
}

// A mode is one of the three ways to let a guest's output leave.
type mode string

const (
	comparing  mode = "compare"
	continuous mode = "continuous"
	adapting   mode = "adaptive"
)

type happening struct {
	at time.Duration
	n  int // those of one time happen in the order in which they were planned
	do func()
}

type happenings []happening

func (h happenings) Len() int { return len(h) }
func (h happenings) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].n < h[j].n
}
func (h happenings) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *happenings) Push(x any)   { *h = append(*h, x.(happening)) }
func (h *happenings) Pop() any {
	x := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return x
}

// A pairOf guests serves clients in virtual time, in which all that is not said by the
// workload takes none.
type pairOf struct {
	workload
	t    *testing.T
	mode mode
	e    *compare.Engine
	rnd  *rand.Rand

	now     time.Duration
	plan    happenings
	planned int

	epoch       uint64
	busy        bool          // a checkpoint is being made
	wanted      bool          // another one is
	resumes     time.Duration // when the guests run again
	loaded      time.Duration // when the secondary's does
	clients     []asker
	held        []int // continuous: whose answers wait
	total       int
	checkpoints int
}

const firstPort = 1000

type asker struct {
	rnd    *rand.Rand // each has its own, so that all modes meet the same
	port   uint16
	seq    uint32
	asked  time.Duration
	waited time.Duration
	n      int
}

func (x *pairOf) at(t time.Duration, do func()) {
	x.planned++
	heap.Push(&x.plan, happening{max(t, x.now), x.planned, do})
}

// noisy returns a time that something takes on a machine that has other things to do.
func (x *pairOf) noisy(rnd *rand.Rand, d time.Duration) time.Duration {
	if x.noise == 0 {
		return d
	}
	f := 1 + x.noise*rnd.Float64()
	if rnd.IntN(2) == 0 {
		f = 1 / f
	}
	return time.Duration(float64(d) * f)
}

func (x *pairOf) clock() time.Time { return time.Unix(1000, 0).Add(x.now) }

// served counts the answers that clients get in a time, and the cost of them.
type served struct {
	mean        time.Duration // of the flows' mean waits
	answers     int
	checkpoints int
}

func (l workload) serve(t *testing.T, m mode, long time.Duration) served {
	x := &pairOf{
		workload: l, t: t, mode: m, rnd: rand.New(rand.NewPCG(1, 2)),
		e: compare.NewEngine(compare.Config{
			Marks: true, PatientAcks: true, LowerAcks: true, ReleaseRetransmits: true, HoldUncompared: true, Adaptive: m == adapting,
		}),
		clients: make([]asker, l.flows),
	}
	x.begin()
	for i := range x.clients {
		x.clients[i] = asker{rnd: rand.New(rand.NewPCG(3, uint64(i))), port: firstPort + uint16(i), seq: 1, asked: -1}
		x.at(time.Duration(i)*l.every/time.Duration(l.flows), func() { x.ask(i) })
	}
	for x.now < long {
		next := long
		if len(x.plan) > 0 {
			next = x.plan[0].at
		}
		if d := x.e.Deadline(); m != continuous && !d.IsZero() && d.Sub(time.Unix(1000, 0)) < next {
			x.now = max(x.now, d.Sub(time.Unix(1000, 0)))
			x.follow(x.e.Tick(x.clock()))
			continue
		}
		if len(x.plan) == 0 {
			t.Fatal("nothing will ever happen")
		}
		h := heap.Pop(&x.plan).(happening)
		x.now = h.at
		h.do()
	}
	o := served{answers: x.total, checkpoints: x.checkpoints}
	for i := range x.clients {
		c := &x.clients[i]
		if c.asked >= 0 { // and waits still
			c.waited += x.now - c.asked
			c.n++
		}
		if c.n == 0 {
			t.Fatal("a client has never asked")
		}
		o.mean += c.waited / time.Duration(c.n) / time.Duration(l.flows)
	}
	return o
}

// ask has both guests answer a client, as soon as they run.
func (x *pairOf) ask(i int) {
	c := &x.clients[i]
	c.asked = x.now
	x.at(x.resumes, func() { x.answer(i) })
}

func (x *pairOf) answer(i int) {
	if x.now < x.resumes { // it is paused again
		x.at(x.resumes, func() { x.answer(i) })
		return
	}
	c := &x.clients[i]
	if x.mode == continuous {
		x.held = append(x.held, i)
		return
	}
	s := seg{port: c.port, seq: c.seq, ack: 1, flags: push, data: fmt.Sprintf("%16d", c.seq)}
	c.seq += uint32(len(s.data))
	other := s
	if i < x.random {
		other.data = strings.ReplaceAll(s.data, " ", "-")
	}
	epoch := x.epoch
	x.follow(x.e.Primary(s.frame(), x.clock()))
	x.at(max(x.now, x.loaded)+x.noisy(c.rnd, x.late), func() {
		if epoch == x.epoch { // or the secondary's guest has become one that has answered
			x.follow(x.e.Secondary(other.frame(), x.clock()))
		}
	})
}

func (x *pairOf) follow(r compare.Result) {
	for _, f := range r.Release {
		x.leaves(int(binary.BigEndian.Uint16(f.Data[packet.EthernetLen+packet.IPv4Len+2:]) - firstPort))
	}
	if r.Diverged {
		x.want()
	}
}

func (x *pairOf) leaves(i int) {
	c := &x.clients[i]
	c.waited += x.now - c.asked
	c.asked = -1
	c.n++
	x.total++
	think := time.Duration((0.5 + c.rnd.Float64()) * float64(x.every)) // or all clients fall into step with the checkpoints
	x.at(x.now+think, func() {
		x.ask(i)
	})
}

func (x *pairOf) want() {
	if x.wanted = true; !x.busy {
		x.at(x.now, x.checkpoint)
		x.busy = true
	}
}

// begin is the first synchronisation.
func (x *pairOf) begin() {
	x.must(x.e.Mark(0))
	_, err := x.e.Received(0)
	x.must(err)
	_, err = x.e.SecondaryMark(0)
	x.must(err)
	x.must(x.e.Loaded(0))
	x.epoch = 1
	if x.mode == continuous {
		x.at(x.delay, x.checkpoint)
	}
}

func (x *pairOf) must(err error) {
	if err != nil {
		x.t.Fatal(err)
	}
}

func (x *pairOf) checkpoint() {
	x.busy, x.wanted = true, false
	x.checkpoints++
	epoch, covered := x.epoch, slices.Clone(x.held)
	x.held = x.held[:0]
	x.follow(x.e.Tick(x.clock()))
	x.wanted = false // what has just been asked for is this one
	if x.mode != continuous {
		x.must(x.e.Mark(epoch))
	}
	x.epoch++
	x.resumes = x.now + x.noisy(x.rnd, x.pause)
	received := x.resumes + x.noisy(x.rnd, x.send)
	x.loaded = received + x.noisy(x.rnd, x.load)
	x.at(received, func() {
		for _, i := range covered {
			x.leaves(i)
		}
		if x.mode != continuous {
			x.follow(x.e.Tick(x.clock()))
			r, err := x.e.Received(epoch)
			x.must(err)
			x.follow(r)
		}
	})
	x.at(x.loaded, func() {
		x.busy = false
		if x.mode == continuous {
			x.at(x.now+x.delay, x.checkpoint)
			return
		}
		x.follow(x.e.Tick(x.clock()))
		r, err := x.e.SecondaryMark(epoch)
		x.must(err)
		x.follow(r)
		x.must(x.e.Loaded(epoch))
		if x.wanted && !x.busy {
			x.want()
		}
	})
}

// Whatever share of the flows never agrees, however fast the clients are, whatever
// checkpoints take, on a machine that is idle or is not: adaptive is hardly worse than the
// better of the two fixed modes. (Output commit without a delay between its checkpoints is
// none of those: its guests stand still for much of the time.)
func TestTheAdaptiveWayIsHardlyEverWorseThanTheBetterOne(t *testing.T) {
	const ms = time.Millisecond
	worst := 0.0
	for _, every := range []time.Duration{ms, 10 * ms, 100 * ms} {
		for _, cost := range []time.Duration{ms / 2, 3 * ms, 20 * ms} {
			for _, noise := range []float64{0, 3} {
				if testing.Short() && (cost != 3*ms || every == 10*ms || (every == ms) != (noise == 0)) {
					continue
				}
				long := 10 * time.Second
				if cost < ms && every == ms {
					long /= 4 // more than enough happens
				} else if cost > 10*ms {
					long *= 6
				}
				if testing.Short() {
					long /= 2
				}
				l := workload{flows: 8, every: every, pause: cost, send: cost, load: cost, late: ms, noise: noise, delay: 5 * ms}
				slow := l
				slow.delay = 20 * ms
				fixed := []served{l.serve(t, continuous, long), slow.serve(t, continuous, long)}
				for _, l.random = range []int{0, 1, 4, 8} {
					got, other := l.serve(t, adapting, long), l.serve(t, comparing, long)
					for _, o := range append(fixed, other) {
						worst = max(worst, float64(got.mean)/float64(o.mean), float64(o.answers)/float64(got.answers))
						if got.mean > o.mean+o.mean/10 || got.answers < o.answers-o.answers/10 {
							t.Errorf("%+v:\nadaptive %+v\nfixed    %+v", l, got, o)
						}
					}
				}
			}
		}
	}
	t.Logf("at most %.2f of the better one's", worst)
}
