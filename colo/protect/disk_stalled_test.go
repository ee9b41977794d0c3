package protect

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
)

// stalls returns what a host has told of its disks that do not answer.
func (h *host) stalls() (all []event.DiskStalled) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e, ok := e.(event.DiskStalled); ok {
			all = append(all, e)
		}
	}
	return all
}

// What is told of a disk, second by second, with a limit of 10 s.
func TestADiskThatDoesNotAnswerIsToldOfOnceAndWhenItDoes(t *testing.T) {
	type step struct {
		at   int    // seconds
		do   string // "+write" begins, "-write" ends, "shut" and "open" are the gate's
		told string // at the looks up to the next step
	}
	for name, steps := range map[string][]step{
		"a request that is answered in time": {{0, "+read", ""}, {9, "-read", ""}, {60, "", ""}},
		"one that is not":                    {{0, "+read", "10 read 10"}, {60, "-read", "60 read 60 ended"}, {90, "", ""}},
		"two stalls": {
			{0, "+flush", "10 flush 10"}, {20, "-flush", "20 flush 20 ended"},
			{30, "+write", "40 write 10"}, {50, "-write", "50 write 20 ended"},
		},
		"one stall of two requests": {
			{0, "+flush", ""}, {5, "+write", "10 flush 10"}, {20, "-flush", ""}, {30, "-write", "30 flush 30 ended"},
		},
		"requests of which each is answered in time": {
			{0, "+write", ""}, {8, "+read", ""}, {9, "-write", ""}, {16, "+write", ""}, {17, "-read", ""}, {25, "-write", ""},
		},
		"a write that waits for the gate": {{0, "shut", ""}, {1, "+write", ""}, {100, "open", "109 write 10"}, {120, "-write", "120 write 21 ended"}},
		"one that is answered then":       {{0, "shut", ""}, {1, "+write", ""}, {100, "open", ""}, {105, "-write", ""}},
		"what does not wait for the gate": {{0, "shut", ""}, {1, "+generation", "11 generation 10"}, {50, "-generation", "50 generation 49 ended"}},
		"a gate that shuts meanwhile": {
			{0, "+write", "10 write 10"}, {20, "shut", ""}, {40, "open", ""}, {70, "-write", "70 write 70 ended"},
		},
		"a write behind it that waits for the gate alone": {
			{0, "+flush", "10 flush 10"}, {20, "shut", ""}, {21, "+write", ""}, {30, "-flush", "30 flush 30 ended"}, {99, "-write", ""},
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			var w diskWaits
			var s stall
			begun, open, asked := time.Now(), true, map[string]int{}
			for i, st := range steps {
				time.Sleep(time.Until(begun.Add(time.Duration(st.at) * time.Second)))
				switch op := strings.TrimLeft(st.do, "+-"); {
				case op == "shut", op == "open":
					open = op == "open"
				case strings.HasPrefix(st.do, "+"):
					asked[op] = w.begin(diskOp(slices.Index(diskOpNames[:], op)))
				case op != "":
					w.end(asked[op])
				}
				until := st.at + 60
				if i+1 < len(steps) {
					until = steps[i+1].at
				}
				var told []string
				for at := st.at; at < until; at++ {
					time.Sleep(time.Until(begun.Add(time.Duration(at) * time.Second)))
					if e, ok := s.look(&w, time.Now(), open, 10*time.Second); ok {
						told = append(told, fmt.Sprint(at, e.Operation, e.WaitedNS/1e9)+map[bool]string{true: " ended"}[e.Ended])
					}
				}
				if got := strings.Join(told, ", "); strings.ReplaceAll(got, " ", "") != strings.ReplaceAll(st.told, " ", "") {
					t.Errorf("%s: after %q at %d s: %q, want %q", name, st.do, st.at, got, st.told)
				}
			}
		})
	}
}

func TestAccountOfRequestsCostsNoMemory(t *testing.T) {
	var w diskWaits
	if n := testing.AllocsPerRun(1000, func() {
		a, b := w.begin(opWrite), w.begin(opFlush)
		w.end(a)
		w.end(b)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A takeover records its generation on a disk whose storage hangs. The host says so, in its log too.
func TestATakeoverThatWaitsForADiskSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		s.wear = map[string]*wear{}
		var log bytes.Buffer
		b := s.start("b", false, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		a := s.start("a", true, nil)
		a.is(Protected)
		b.is(Following)
		hangs := func() {
			s.wear["b"].before.Store(nil)
			time.Sleep(30 * time.Second)
		}
		s.wear["b"].before.Store(&hangs)
		a.kill(false)
		b.is(Alone)
		a.bury()
		time.Sleep(10 * time.Second)
		all := b.stalls()
		if len(all) != 2 || all[0].Ended || !all[1].Ended {
			t.Fatalf("%+v", all)
		}
		for i, least := range []time.Duration{b.job.cfg.PeerTimeout, 30 * time.Second} {
			want := event.DiskStalled{Mode: all[i].Mode, Guest: "guest", Disk: "root", Host: "b", Operation: "generation", WaitedNS: all[i].WaitedNS, Ended: i == 1}
			if waited := time.Duration(all[i].WaitedNS); all[i] != want || waited < least || waited > least+2*time.Second {
				t.Errorf("%+v", all[i])
			}
		}
		if all[0].Mode != event.ModeSecondary {
			t.Errorf("side %v", all[0].Mode)
		}
		if n := strings.Count(log.String(), "DISK_STALLED"); n != 2 {
			t.Errorf("%d records:\n%s", n, &log)
		}
		b.halt()
	})
}

// Nor does the guest wait for that record. It goes on after two seconds, and the log has words for whoever finds
// after a cold start that the disks are of the generation before: an error of the disk has the same.
func TestATakeoverDoesNotWaitForTheRecordOfItsGeneration(t *testing.T) {
	t.Parallel()
	for _, fails := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, false)
			s.wear = map[string]*wear{}
			var log lines
			b := s.start("b", false, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
			a := s.start("a", true, nil)
			a.is(Protected)
			b.is(Following)
			breaks := func() {
				s.wear["b"].before.Store(nil)
				s.wear["b"].out.Store(true)
			}
			if fails {
				s.wear["b"].before.Store(&breaks)
			} else {
				b.job.holding <- struct{}{} // as while a generation is being recorded
			}
			a.kill(false)
			b.is(Asking)
			begun := time.Now()
			b.is(Alone)
			a.bury()
			if d := time.Since(begun); !fails && d < recordWait+obedient || d > b.job.cfg.Term+recordWait+obedient {
				t.Errorf("the guest stands still for %v", d)
			}
			before := s.heard()
			time.Sleep(time.Second)
			if s.heard() == before {
				t.Error("nothing leaves the guest")
			}
			want := "record generation 2: the disks have not answered for 2s"
			if fails {
				want = `disk \"root\": record generation 2: `
			}
			if said := strings.Join(log.all(), "\n"); !strings.Contains(said, want) {
				t.Errorf("the log does not say %q:\n%s", want, said)
			}
			if !fails {
				<-b.job.holding
			}
			time.Sleep(time.Minute)
			if g := s.heldBy("b"); !fails && g != 2 || fails && g != 1 {
				t.Errorf("the disk is of generation %d", g)
			}
			b.halt()
		})
	}
}

// A guest that stands still with its disk is no host that stands still without a word.
func TestAGuestWhoseDiskDoesNotAnswerIsToldOf(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		w.guest.Interval = 100 * time.Millisecond
		a := w.boot("a", true, nil)
		a.is(Alone)
		a.image.slows(time.Minute)
		w.until(func() bool { return len(a.stalls()) == 1 })
		if err := a.job.Query().LastError; err == nil || !strings.Contains(err.Error(), "has not been answered for") {
			t.Errorf("LastError: %v", err)
		}
		a.image.slows(0)
		time.Sleep(3 * time.Minute)
		if all := a.stalls(); len(all) != 2 || all[0].Mode != event.ModePrimary || all[0].Ended || !all[1].Ended {
			t.Errorf("%+v", all)
		}
		a.halt()
	})
}

// A checkpoint of the primary waits for the disks of both hosts. What is told of one that does not answer
// names the host whose disk it is, at both.
func TestADiskThatDoesNotAnswerIsToldOfWithItsHost(t *testing.T) {
	t.Parallel()
	for _, slow := range []string{"a", "b"} {
		withDisk(t, "disk of "+slow, func(t *testing.T, w *world) {
			w.guest.Interval = 500 * time.Millisecond
			patient := func(c *Config) { c.CheckpointTimeout = 5 * time.Minute }
			b := w.boot("b", false, patient)
			a := w.boot("a", true, patient)
			a.is(Protected)
			b.is(Following)
			late := map[string]*host{"a": a, "b": b}[slow]
			late.image.slows(time.Minute)
			w.until(func() bool { return len(a.stalls()) > 0 })
			late.image.slows(0)
			time.Sleep(3 * time.Minute)
			for _, h := range []*host{a, b} {
				for _, e := range h.stalls() {
					if e.Host != slow {
						t.Errorf("host %s: %+v", h.name, e)
					}
				}
			}
			if all := a.stalls(); len(all) < 2 || !all[len(all)-1].Ended || len(b.stalls()) == 0 && slow == "b" {
				t.Errorf("a: %+v\nb: %+v", all, b.stalls())
			}
			b.halt()
			a.halt()
		})
	}
}
