package proxy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
)

// Two guests that say the same, mostly, and are told the same, over a network
// that is slow at times and a connection that breaks at times; then a host dies,
// wherever in whichever step. What the survivor's guest remembers to have said
// must all have left, by one host or the other, and nothing may have left that it
// does not remember. What it was told came once and in order.
func TestWhicheverHostDiesWhenever(t *testing.T) {
	seeds := uint64(150)
	if testing.Short() {
		seeds = 15
	}
	for _, continuous := range []bool{false, true} {
		for _, victim := range []string{"primary", "secondary", "nobody"} {
			t.Run(fmt.Sprintf("%s/continuous=%v", victim, continuous), func(t *testing.T) {
				for seed := range seeds {
					synctest.Test(t, func(t *testing.T) { live(t, seed, victim, continuous) })
				}
			})
		}
	}
}

func live(t *testing.T, seed uint64, victim string, continuous bool) {
	rnd := rand.New(rand.NewPCG(seed, 17))
	w := newContinuous(t, continuous)
	defer w.end()
	inputs := 0
	differ := rnd.IntN(3) * 10 // per cent
	speak := func(g *guest) {
		x := strconv.Itoa(len(g.said))
		if rnd.IntN(100) < differ {
			x += fmt.Sprintf(" by %p", g)
		}
		w.say(g, x)
	}
	stirs := func() {
		for range rnd.IntN(6) {
			switch k := rnd.IntN(12); {
			case k < 5:
				if !w.pg.paused {
					speak(w.pg)
				}
			case k < 9:
				if !w.sg.paused {
					speak(w.sg)
				}
			case k == 9:
				inputs++
				w.arrive(strconv.Itoa(inputs))
			case k == 10:
				w.pw.setHold(rnd.IntN(2) == 0)
			case rnd.IntN(8) == 0 && w.pconn != nil:
				w.pconn.Close()
				<-w.pserve
				w.pconn = nil // the other side may notice late, if its guest stands still
			case w.pconn == nil:
				w.connect()
			}
			if rnd.IntN(2) == 0 {
				synctest.Wait()
			}
		}
	}
	committed := false // the secondary has said vmstate-received, and cannot go back
	var x snapshot
	steps := []func(){
		func() { w.must(w.s.Pause(w.ctx)) },
		func() { x = w.mark() },
		func() { committed = true; w.must(w.sreg.LoadDevices(x.network, nil)) },
		func() { w.must(w.p.Received(w.epoch)) },
		func() {
			w.must(w.sreg.Commit())
			w.sg.become(x.told, x.said)
			w.must(w.s.Commit(w.epoch))
			committed = false
		},
		func() { w.run() },
		func() { w.must(w.p.Loaded(w.epoch)); w.epoch++ },
	}
	if rnd.IntN(4) > 0 {
		w.connect()
	}
	w.checkpoint()
	death := 1 + rnd.IntN(6*len(steps))
	for i := range death {
		stirs()
		steps[i%len(steps)]()
	}
	stirs()

	var survivor *guest
	switch victim {
	case "nobody":
		for i := death; i%len(steps) != 0; i++ {
			steps[i%len(steps)]()
		}
		if w.pconn == nil {
			w.connect()
		}
		w.pw.setHold(false)
		w.checkpoint()
		inputs++
		w.arrive(strconv.Itoa(inputs))
		synctest.Wait()
		if !continuous && !slices.Equal(w.pg.heard(), w.sg.heard()) {
			t.Errorf("seed %d: the guests were told %q and %q", seed, w.pg.heard(), w.sg.heard())
		}
		w.checkpoint()
		survivor = w.pg
	case "primary":
		w.pw.Close()
		if w.pconn != nil {
			w.pconn.Close()
		}
		w.must(w.s.Pause(w.ctx))
		if committed {
			w.must(w.sreg.Commit())
			w.sg.become(x.told, x.said)
			w.must(w.s.Commit(w.epoch))
		} else {
			w.sreg.Rollback()
		}
		w.must(w.s.Failover())
		w.must(w.s.Resume(w.ctx))
		speak(w.sg)
		survivor = w.sg
	case "secondary":
		if w.sconn != nil {
			w.sconn.Close()
		}
		w.must(w.p.Pause(w.ctx))
		w.must(w.p.Failover())
		w.must(w.p.Resume(w.ctx))
		w.pw.setHold(false)
		speak(w.pg)
		survivor = w.pg
	}
	synctest.Wait()
	left := append(w.pw.left(), w.sw.left()...)
	for _, x := range survivor.said {
		if !slices.Contains(left, x) {
			t.Errorf("seed %d: %q has not left, of %q; %q have", seed, x, survivor.said, left)
		}
	}
	for _, x := range left {
		if !slices.Contains(survivor.said, x) {
			t.Errorf("seed %d: %q has left, the survivor has said %q", seed, x, survivor.said)
		}
	}
	if survivor == w.pg && len(left) != len(survivor.said) {
		t.Errorf("seed %d: %d have left of the %d that the only guest has said", seed, len(left), len(survivor.said))
	}
	last := 0
	for _, x := range survivor.heard() {
		n, err := strconv.Atoi(x)
		if err != nil || n <= last {
			t.Errorf("seed %d: the survivor was told %q", seed, survivor.heard())
			break
		}
		last = n
	}
	if survivor == w.pg && last != inputs {
		t.Errorf("seed %d: the primary's guest was told %q, the last should be %d", seed, survivor.heard(), inputs)
	}
}
