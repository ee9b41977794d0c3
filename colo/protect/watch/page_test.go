package watch

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
)

func TestAPageTellsWhatHappensAsItHappens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJob(protect.Protected)
		s := serveInMemory(t, Config{Job: j})
		live := s.live("/live?width=400")
		first, err := live.next()
		if err != nil || first.State != "protected" || first.Sentence != "The guest runs here, on host a. Host b has every checkpoint." || first.Tone != "good" {
			t.Fatalf("%+v, %v", first, err)
		}
		s.bus.Publish(event.CheckpointStart{Mode: event.ModePrimary, Epoch: 13, Cause: event.CauseTimer})
		s.bus.Publish(event.CheckpointCommit{Mode: event.ModePrimary, Epoch: 13, Cause: event.CauseDivergence, Pages: 5, Bytes: 20480, PauseNS: 1e6, TransferNS: 3e6, CommitNS: 1e6})
		s.bus.Publish(event.NetworkDiverged{Flow: event.Flow{Source: "10.0.0.2:80", Destination: "10.0.0.9:4000", Protocol: 6}, Reason: "data"})
		s.bus.Publish(event.COLOExit{Mode: event.ModePrimary, Reason: event.ExitError, Error: "silence"})
		got := live.until("the event", func(s snapshot) bool { return len(s.Events) > 0 })
		if e := got.Events[0]; e.Name != "COLO_EXIT" || e.Tone != "warn" || !strings.Contains(e.Text, "silence") {
			t.Errorf("%+v", e)
		}
		if c := got.Checkpoints; len(c) != 1 || c[0] != (row{13, "divergence", "1.00\u00a0ms", "3.00\u00a0ms", "1.00\u00a0ms", 5, "20.0 KiB"}) {
			t.Errorf("%+v", c)
		}
		if f := got.Flows; len(f) != 1 || f[0].Flow != "TCP 10.0.0.2:80 → 10.0.0.9:4000" || f[0].Count != 1 || f[0].Reason != "data" {
			t.Errorf("%+v", f)
		}
		if !strings.Contains(got.Picture, `class="red"`) || !strings.Contains(got.Picture, `width="400"`) {
			t.Errorf("the checkpoint is not in the picture: %s", got.Picture)
		}
		when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		j.mu.Lock()
		j.info.State, j.info.Peer = protect.Alone, ""
		j.info.LastError, j.info.LastErrorAt = errors.New("silence"), when
		j.mu.Unlock()
		got = live.until("the state", func(s snapshot) bool { return s.State == "alone" })
		if got.There.Host != "" || got.Boot != first.Boot {
			t.Errorf("%+v", got)
		}
		if first.Error != "" || !first.ErrorAt.IsZero() || got.Error != "silence" || !got.ErrorAt.Equal(when) {
			t.Errorf("the error was %q at %v, and is %q at %v", first.Error, first.ErrorAt, got.Error, got.ErrorAt)
		}
	})
}

// The token is for the page, which is the only one that can read the stream.
// Where nothing happens a browser hears every second that the page is there.
func TestABrowserIsToldTwiceASecondAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := serveInMemory(t, Config{Job: newJob(protect.Protected)})
		live := s.live("/live")
		count := func(d time.Duration) (n int) {
			for begin := time.Now(); time.Since(begin) < d; n++ {
				if _, err := live.next(); err != nil {
					t.Fatal(err)
				}
			}
			return n
		}
		const while = 30 * time.Second
		if n := count(while); n < 30 || n > 31 {
			t.Errorf("%d messages in %v in which nothing happens", n, while)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		busy.Go(func() {
			for epoch := uint64(1); ctx.Err() == nil; epoch++ {
				s.bus.Publish(event.HeartbeatLost{Mode: event.ModePrimary, Epoch: epoch})
				time.Sleep(3 * time.Millisecond)
			}
		})
		if n := count(while); n < 50 || n > 61 {
			t.Errorf("%d messages in %v in which much happens", n, while)
		}
		cancel()
		busy.Wait()
	})
}

func TestTheStateAsJSONHasNoToken(t *testing.T) {
	s := serve(t, Config{Job: newJob(protect.Protected), Control: true})
	_, b, h := s.request("GET", "/state", nil)
	if strings.Contains(b, s.page.token) || h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("%s, %v", b, h)
	}
}

func TestThePageNeedsNothingFromElsewhere(t *testing.T) {
	s := serve(t, Config{Job: newJob(protect.Protected), Control: true})
	code, b, h := s.request("GET", "/", nil)
	if code != 200 || !strings.HasPrefix(h.Get("Content-Type"), "text/html") {
		t.Fatal(code, h)
	}
	if m := regexp.MustCompile(`(?:src|href)="?([^" >]+)`).FindAllStringSubmatch(b, -1); len(m) < 3 {
		t.Errorf("%q", m)
	} else {
		for _, m := range m {
			if u := m[1]; !strings.HasPrefix(u, "data:") && !strings.HasPrefix(u, "#") && u != "state" && u != "timeline.svg" {
				t.Errorf("the page needs %s", u)
			}
		}
	}
	policy := h.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "form-action 'none'"} {
		if !strings.Contains(policy, want) {
			t.Errorf("the policy %q lacks %s", policy, want)
		}
	}
	if _, again, _ := s.request("GET", "/", nil); again == b {
		t.Error("the nonce of the page's script is the same each time")
	}
}

func TestThePageHasOrdersWhereItMayGiveThemAndNothingIsLeftOpenInIt(t *testing.T) {
	for _, control := range []bool{false, true} {
		s := serve(t, Config{Job: newJob(protect.Protected), Control: control})
		_, b, _ := s.request("GET", "/", nil)
		for _, id := range []string{`id="actions"`, `id="confirm"`} {
			if strings.Contains(b, id) != control {
				t.Errorf("Control is %v, and the page has %s: %v", control, id, !control)
			}
		}
		if !strings.Contains(b, "<title>db1 – lockstep</title>") || !strings.Contains(b, "EventSource") || strings.Contains(b, "{{") {
			t.Errorf("not filled in: %s", b)
		}
	}
}

func TestWhatAGuestAndAPeerSayIsNoMarkup(t *testing.T) {
	j := newJob(protect.Protected)
	evil := `"><script>alert(1)</script>`
	j.info.Guest, j.info.Peer = evil, evil
	s := serve(t, Config{Job: j})
	s.bus.Publish(event.JobStatusChange{ID: evil, State: evil, Reason: evil})
	for _, path := range []string{"/", "/timeline.svg"} {
		if _, b, _ := s.request("GET", path, nil); strings.Contains(b, "<script>alert") {
			t.Errorf("%s: %s", path, b)
		}
	}
	if snap := s.page.snapshot(600); strings.Contains(snap.Picture, "<script") {
		t.Error(snap.Picture)
	}
}

func TestThePictureIsADocumentOfItsOwn(t *testing.T) {
	s := serve(t, Config{Job: newJob(protect.Protected)})
	for i := range 30 {
		s.bus.Publish(event.CheckpointCommit{Mode: event.ModePrimary, Epoch: uint64(i), Cause: event.CauseTimer, PauseNS: 1e5, TransferNS: 1e6 * int64(i), CommitNS: 1e6})
	}
	for _, width := range []string{"", "?width=300", "?width=-1", "?width=999999999", "?width=x"} {
		_, b, h := s.request("GET", "/timeline.svg"+width, nil)
		if h.Get("Content-Type") != "image/svg+xml" {
			t.Error(h)
		}
		for d := xml.NewDecoder(strings.NewReader(b)); ; {
			_, err := d.Token()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v\n%s", width, err, b)
			}
		}
	}
}

// The buttons that can be pressed are those of the table in package protect.
func TestButtonsArePossibleWhereTheVerbIs(t *testing.T) {
	b, err := os.ReadFile("../doc.go")
	if err != nil {
		t.Fatal(err)
	}
	table := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^//\t([a-z]+) {2,}([a-z-]+(?:, [a-z-]+)*)$`).FindAllStringSubmatch(string(b), -1) {
		table[m[1]] = strings.Split(m[2], ", ")
	}
	seen := map[string]bool{}
	for st := protect.Created; st <= protect.Concluded; st++ {
		for _, a := range actions(newJob(st).info) {
			if table[a.Verb] == nil {
				t.Fatalf("the table has no %s", a.Verb)
			}
			seen[a.Verb] = true
			if want := slices.Contains(table[a.Verb], st.String()); a.Enabled != want {
				t.Errorf("%s while %v: possible %v, want %v", a.Verb, st, a.Enabled, want)
			}
			if a.Enabled == (a.Why != "") {
				t.Errorf("%s while %v: %q", a.Verb, st, a.Why)
			}
			if len(a.Confirm) < 40 {
				t.Errorf("%s is confirmed by %q", a.Verb, a.Confirm)
			}
		}
	}
	if len(seen) != 6 {
		t.Errorf("%v", seen)
	}
	in := newJob(protect.Following).info
	in.Session.State = colo.StateSynchronising
	for _, a := range actions(in) {
		if a.Enabled {
			t.Errorf("%s of a copy that is not whole", a.Verb)
		}
	}
}

func TestEveryStateHasASentence(t *testing.T) {
	seen := map[string]bool{}
	for st := protect.Created; st <= protect.Concluded; st++ {
		s, tone := sentence(newJob(st).info)
		if seen[s] || tone == "" {
			t.Errorf("%v: %q, %q", st, s, tone)
		}
		seen[s] = true
	}
}

// An operator's word, and a grant without a deadline, have no end to count down to.
func TestAGateThatNothingEndsHasNoTime(t *testing.T) {
	now := time.Now()
	for _, x := range []struct {
		in   protect.Info
		want string
	}{
		{protect.Info{}, "shut: nothing of the guest leaves"},
		{protect.Info{Open: true}, "open, until somebody shuts it"},
		{protect.Info{Open: true, Until: now.Add(1500 * time.Millisecond)}, "open, for 1.5 s unless renewed"},
		{protect.Info{Open: true, Until: now.Add(-time.Second)}, "open, for 0.0 s unless renewed"},
	} {
		if got := here(x.in, now).Facts[1]; got != (fact{"Gate", x.want}) {
			t.Errorf("%+v, want %q", got, x.want)
		}
	}
}
