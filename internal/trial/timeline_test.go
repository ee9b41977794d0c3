package trial

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/oracle"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

// drawn returns a run as it might have been: thirty checkpoints, one of them slow,
// and the primary killed in the last.
func drawn() (Config, *Result) {
	o := Config{VCPUs: 2, Mem: 16 << 20, Interval: 60 * time.Millisecond, EarlyResume: true, Repeat: 1}
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ms float64) time.Time { return start.Add(time.Duration(ms * float64(time.Millisecond))) }
	r := &Result{
		started: start, protected: at(80), victim: Primary, survivor: Secondary, epoch: 30,
		killed: at(1913), killedAt: "in checkpoint 31", resumed: at(1916.5),
		frames:  map[string][]arrival{},
		exit:    event.COLOExit{Mode: event.ModeSecondary, Reason: event.ExitError},
		Verdict: oracle.Verdict{Released: 6400, Duplicated: 210},
	}
	r.checkpoints = append(r.checkpoints, Checkpoint{Epoch: 0, Cause: event.CauseInitial, Start: at(20), DirtyPages: 4000})
	n := uint64(0)
	for e := range uint64(30) {
		c := Checkpoint{
			Epoch: e + 1, Cause: event.CauseTimer, Start: at(80 + 60*float64(e+1)), EarlyResume: true,
			PauseAtUS: 300, PauseUS: 500 + int64(e*37%200), TransferUS: 3000 + int64(e*91%900), CommitUS: 1500 + int64(e*53%700),
			DirtyPages: 700 + e*29%150, Bytes: 3e6, Held: 20 + e*17%6,
		}
		if e == 12 {
			c.TransferUS, c.Cause = 40000, event.CauseLimit
		}
		for range c.Held {
			n++
			r.frames[Primary] = append(r.frames[Primary], arrival{c.Start.Add(4 * time.Millisecond), 0, n})
		}
		r.checkpoints = append(r.checkpoints, c)
	}
	for i := range uint64(80) {
		when := 1916.5
		if i > 40 {
			when += float64(i-40) * 2
		}
		r.frames[Secondary] = append(r.frames[Secondary], arrival{at(when), int(i % 2), n - 10 + i})
	}
	return o, r
}

func TestATimelineIsDrawnAsBefore(t *testing.T) {
	for name, change := range map[string]func(*Result){
		"killed":  func(*Result) {},
		"no-kill": func(r *Result) { r.victim, r.killedAt, r.survivor, r.killed = "", "", Primary, time.Time{} },
		"throttled": func(r *Result) {
			for i, p := range []int{20, 30, 40, 30, 0} {
				r.throttled = append(r.throttled, throttled{r.started.Add(time.Duration(400+200*i) * time.Millisecond), p})
			}
		},
		"one-point": func(r *Result) { r.checkpoints = r.checkpoints[:2]; r.frames[Primary] = r.frames[Primary][:20] },
	} {
		o, r := drawn()
		change(r)
		var got bytes.Buffer
		if err := DrawTimeline(&got, o, "sim", r); err != nil {
			t.Fatal(err)
		}
		wellFormed(t, name, got.Bytes())
		file := filepath.Join("testdata", "timeline-"+name+".svg")
		if *update {
			if err := os.WriteFile(file, got.Bytes(), 0o666); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s differs from %s; -update rewrites it", name, file)
		}
	}
}

func TestATimelineOfNothingIsStillAPicture(t *testing.T) {
	var got bytes.Buffer
	if err := DrawTimeline(&got, Config{VCPUs: 1}, "sim", &Result{started: time.Unix(1, 0)}); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, "nothing", got.Bytes())
}

// wellFormed checks that a browser gets XML, and numbers where numbers belong.
func wellFormed(t *testing.T, name string, svg []byte) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if e, ok := tok.(xml.StartElement); ok {
			for _, a := range e.Attr {
				if strings.Contains(a.Value, "NaN") || strings.Contains(a.Value, "Inf") || strings.HasPrefix(a.Value, "-") && a.Name.Local != "x" {
					t.Fatalf("%s: <%s %s=%q>", name, e.Name.Local, a.Name.Local, a.Value)
				}
			}
		}
	}
}
