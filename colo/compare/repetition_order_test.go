package compare_test

import (
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// A repetition that left at once would overtake what its guest has sent before it, and the
// guest would take that for lost.
func TestARepetitionTakesItsTurn(t *testing.T) {
	for name, c := range map[string]struct {
		then func(x *rig, p, s func(ackSeg) compare.Result) compare.Result
		want string
	}{
		"behind what waits": {func(x *rig, p, s func(ackSeg) compare.Result) compare.Result {
			return s(data(112, "mnop"))
		}, "mnop@112 ack 1000 to 7400, efgh@104 ack 1000 to 7400"},
		"and before what comes later": {func(x *rig, p, s func(ackSeg) compare.Result) compare.Result {
			p(data(116, "qrst"))
			return s(data(112, "mnopqrst"))
		}, "mnop@112 ack 1000 to 7400, efgh@104 ack 1000 to 7400, qrst@116 ack 1000 to 7400"},
		"or leaves when the other guest repeats it": {func(x *rig, p, s func(ackSeg) compare.Result) compare.Result {
			return s(data(104, "efgh"))
		}, "efgh@104 ack 1000 to 7400"},
		"or when its guest repeats it again": {func(x *rig, p, s func(ackSeg) compare.Result) compare.Result {
			return p(data(104, "efgh"))
		}, "efgh@104 ack 1000 to 7400, efgh@104 ack 1000 to 7400"},
		"or after the time of the way": {func(x *rig, p, s func(ackSeg) compare.Result) compare.Result {
			x.now = x.now.Add(10 * time.Millisecond)
			return x.Tick(x.now)
		}, "efgh@104 ack 1000 to 7400"},
		"or after a checkpoint": {func(x *rig, p, s func(ackSeg) compare.Result) compare.Result {
			x.Mark(1)
			r, _ := x.SecondaryMark(1)
			return r
		}, "mnop@112 ack 1000 to 7400, efgh@104 ack 1000 to 7400"},
	} {
		t.Run(name, func(t *testing.T) {
			x, p, s, _ := lossy(t)
			x.told("it waits", p(data(112, "mnop")), "")
			x.told("behind it", p(data(104, "efgh")), "")
			x.now = x.now.Add(9 * time.Millisecond)
			x.told("not longer", x.Tick(x.now), "")
			x.now = x.now.Add(-9 * time.Millisecond)
			x.told("", c.then(x, p, s), c.want)
			if st := x.Stats(); strings.Contains(c.want, "mnop") && (st.Held != 0 || st.HeldBytes != 0) {
				t.Errorf("%+v", st)
			}
		})
	}
}

// By the time that it is its turn, the peer may have it.
func TestARepetitionWhoseTurnComesTooLateDoesNotLeave(t *testing.T) {
	late := func(ack uint32) (x *rig, s func(ackSeg) compare.Result) {
		x, p, s, hear := lossy(t)
		p(data(112, "mnop"))
		a := data(104, "efgh")
		a.ack = ack
		x.told("it waits for its turn", p(a), "")
		x.now = x.now.Add(time.Millisecond)
		s(ackSeg{seq: 112, ack: 1000, win: 50, flags: ackOnly}) // time passes with packets
		hear(112)
		return x, s
	}
	x, s := late(1000)
	x.told("in its turn", s(data(112, "mnop")), "mnop@112 ack 1000 to 7400")
	if st := x.Stats(); st.Held != 0 || st.HeldBytes != 0 || st.Repeated != 1 {
		t.Errorf("%+v", st)
	}
	x, s = late(1000)
	x.told("out of turn", s(data(104, "efgh")), "")
	if st := x.Stats(); st.Held != 1 || st.Repeated != 1 {
		t.Errorf("%+v", st)
	}
	x, s = late(1100)
	a := data(112, "mnop")
	a.ack = 1100
	x.told("it says something else", s(a), "mnop@112 ack 1000 to 7400, efgh@104 ack 1100 to 7500")
}
