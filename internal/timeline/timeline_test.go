package timeline

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func at(seconds float64) time.Time { return now.Add(time.Duration(seconds * float64(time.Second))) }

// many returns checkpoints that are so far apart, up to now.
func many(n int, apart time.Duration) (all []Checkpoint) {
	for i := range n {
		all = append(all, Checkpoint{At: now.Add(-time.Duration(n-i) * apart), Epoch: uint64(i), Cause: event.CauseTimer, Pause: 100 * time.Microsecond, Transfer: time.Millisecond, Commit: time.Millisecond})
	}
	return all
}

func TestACheckpointIsABarOfItsCausesColour(t *testing.T) {
	all := many(3, time.Second)
	all[1].Cause, all[1].Stopped = event.CauseDivergence, 250*time.Microsecond
	all[2].Cause = "a word of another release"
	p := (&Live{Now: now, Span: time.Minute, Width: 800, Checkpoints: all}).Picture()
	for _, class := range []string{"blue", "red", "grey"} {
		// Its transfer, its commit, and twice in the explanation of the colours for grey.
		for _, want := range []string{fmt.Sprintf(`class="%s"`, class), fmt.Sprintf(`class="%s commit"`, class)} {
			if !strings.Contains(p, want) {
				t.Errorf("nothing is %s", want)
			}
		}
	}
	for _, want := range []string{">timer<", ">divergence<", ">cause not known here<", "checkpoint 1 (divergence): paused 0.10 ms (stood still 0.25 ms), transfer 1.00 ms, commit 1.00 ms"} {
		if !strings.Contains(p, want) {
			t.Errorf("%q is not said", want)
		}
	}
	if strings.Contains(p, ">request<") {
		t.Error("a colour is explained that does not occur")
	}
}

// However many checkpoints there are, the picture has no more bars than fit.
func TestBarsThatWouldTouchAreOne(t *testing.T) {
	all := many(4000, 15*time.Millisecond)
	all[2000].Transfer = 50 * time.Millisecond // not to be hidden by the others
	p := (&Live{Now: now, Span: time.Minute, Width: 800, Checkpoints: all}).Picture()
	if n := strings.Count(p, "<g><title>"); n > 800/4 || n < 800/8 {
		t.Errorf("%d bars", n)
	}
	if !regexp.MustCompile(`\d+ checkpoints, the longest is checkpoint 2000 `).MatchString(p) {
		t.Error("the longest is not to be seen")
	}
	if len(p) > 200<<10 {
		t.Errorf("%d bytes", len(p))
	}
}

// What has begun lately has the whole width.
func TestNoPartOfThePictureIsEmptyBeforeTheBeginning(t *testing.T) {
	p := (&Live{Now: now, Span: time.Minute, Width: 1000, Checkpoints: many(100, 100*time.Millisecond)}).Picture()
	m := regexp.MustCompile(`</title>\s*<rect x="([\d.]+)"`).FindStringSubmatch(p)
	if m == nil {
		t.Fatal(p)
	}
	var x float64
	fmt.Sscan(m[1], &x)
	if x > 1000/10 {
		t.Errorf("the first bar is at %v of 1000", x)
	}
}

func TestWhoDoesNotSeeThePictureIsTold(t *testing.T) {
	p := (&Live{Now: now, Span: time.Minute, Width: 800, Checkpoints: many(20, time.Second)}).Picture()
	if want := `role="img" aria-label="Timeline: 20 checkpoints in the last 20 seconds; the guest paused for 0.10 ms (median), at most 0.10 ms; a checkpoint took 2.00 ms (median), at most 2.00 ms."`; !strings.Contains(p, want) {
		t.Errorf("%s lacks %s", p[:400], want)
	}
	if p := new(Live).Picture(); !strings.Contains(p, "no checkpoints lately") {
		t.Error(p[:300])
	}
}

func TestNamesOfMomentsDoNotOverlap(t *testing.T) {
	l := &Live{Now: now, Span: time.Minute, Width: 400}
	for i := range 60 {
		l.Marks = append(l.Marks, Mark{At: at(float64(i) - 60), Name: "synchronising", Alarm: i%2 == 0})
	}
	p := l.Picture()
	if lines, names := strings.Count(p, "<g><title>synchronising"), strings.Count(p, "synchronising</text>")+strings.Count(p, "synchronising ▾</text>"); lines != 60 || names > 4 || names < 2 {
		t.Errorf("%d lines, %d names", lines, names)
	}
}

func TestLatencyAndHeldOutputAreDrawnAsTheyWereSeen(t *testing.T) {
	l := &Live{Now: now, Span: 10 * time.Second, Width: 800, Checkpoints: many(10, time.Second)}
	for i := range 10 {
		l.Samples = append(l.Samples, Sample{At: at(float64(i) - 10), Bound: true, Held: int64(i) << 20, Latency: time.Duration(i) * time.Millisecond, Longest: time.Duration(2*i) * time.Millisecond})
	}
	p := l.Picture()
	if n := strings.Count(p, `class="purple"`); n != 9 { // the first has none
		t.Errorf("%d latencies", n)
	}
	if n := strings.Count(p, `class="cyan"`); n != 9 {
		t.Errorf("held output %d times", n)
	}
	if !strings.Contains(p, "median 9.00 ms, longest 18.00 ms") {
		t.Error("the last latency is not said")
	}
}

func TestHowLongPacketsWereKeptIsDrawnAndSaid(t *testing.T) {
	l := &Live{Now: now, Span: 10 * time.Second, Width: 800, Checkpoints: many(10, time.Second)}
	for i := range 10 {
		d := time.Duration(i) * time.Millisecond
		l.Samples = append(l.Samples, Sample{At: at(float64(i) - 10), Packets: uint64(i), Latency: d, P99: 2 * d, Longest: 3 * d})
	}
	p := l.Picture()
	if n := strings.Count(p, `class="purple"`); n != 9 { // in the first none has left
		t.Errorf("%d latencies", n)
	}
	for _, want := range []string{
		"packets 9, median 9.00 ms, 99 % 18.00 ms, longest 27.00 ms", "(median to 99 %)",
		"45 packets left; in the worst quarter of a second 99 of 100 were kept for 18.00 ms or less.",
	} {
		if !strings.Contains(p, want) {
			t.Errorf("%q is not said", want)
		}
	}
}
