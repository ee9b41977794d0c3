package watch

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
)

func TestABrowserThatWatchesIsLetGoWithThePage(t *testing.T) {
	s := serve(t, Config{Job: newJob(protect.Alone)})
	live := s.live("/live")
	if _, err := live.next(); err != nil {
		t.Fatal(err)
	}
	s.stop()
	for {
		if _, err := live.next(); err != nil {
			return // the test would hang otherwise
		}
	}
}

// A timed is the ResponseWriter of a server that notes the deadline for writes which a handler
// sets.
type timed struct {
	*httptest.ResponseRecorder
	until   time.Time
	written []time.Time // until, at each write
}

func (w *timed) SetWriteDeadline(t time.Time) error { w.until = t; return nil }

func (w *timed) Write(p []byte) (int, error) {
	w.written = append(w.written, w.until)
	return w.ResponseRecorder.Write(p)
}

// slow is a job that looks whether an order is given time.
type slow struct {
	*job
	w     *timed
	hurry bool
}

func (s *slow) Switchover(ctx context.Context) error {
	s.hurry = !s.w.until.IsZero()
	return s.job.Switchover(ctx)
}

// Nobody who asks and does not listen keeps a connection, on any path; an order takes
// its time all the same, on a connection that has been used before.
func TestABrowserThatTakesNothingIsLetGo(t *testing.T) {
	j := &slow{job: newJob(protect.Protected)}
	j.refuse = errors.New("not now")
	s := serve(t, Config{Job: j, Control: true})
	ask := func(method, path, body string) {
		t.Helper()
		w := &timed{ResponseRecorder: httptest.NewRecorder()}
		ctx, cancel := context.WithCancel(t.Context())
		if path == "/live" {
			cancel() // after one message
		}
		defer cancel()
		j.w = w
		r := httptest.NewRequestWithContext(ctx, method, "http://localhost"+path, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("X-Lockstep-Token", s.page.token)
		s.page.ServeHTTP(w, r)
		if len(w.written) == 0 {
			t.Errorf("%s %s: no answer, %d", method, path, w.Code)
		}
		for _, until := range append(w.written, w.until) {
			if until.IsZero() {
				t.Errorf("%s %s is answered without a deadline", method, path)
			}
		}
	}
	for _, path := range []string{"/", "/live", "/state", "/timeline.svg", "/metrics", "/nowhere", "/act"} {
		ask("GET", path, "")
	}
	ask("POST", "/act", "verb=format")
	ask("POST", "/act", "verb=switchover")
	if o := j.ordered(); j.hurry || len(o) != 1 {
		t.Errorf("an order has a deadline: %v, %q", j.hurry, o)
	}
}

func TestTooManyWhoWatchAreToldToComeBack(t *testing.T) {
	s := serve(t, Config{Job: newJob(protect.Alone)})
	for range MaxViewers {
		live := s.live("/live")
		if _, err := live.next(); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, h := s.request("GET", "/live", nil); code != http.StatusServiceUnavailable || h.Get("Retry-After") == "" {
		t.Errorf("one too many: %d", code)
	}
}

func TestOnlyThePageGivesOrders(t *testing.T) {
	j := newJob(protect.Protected)
	s := serve(t, Config{Job: j, Control: true, Hosts: []string{"vmm.example"}})
	snap, err := s.live("/live").next()
	if err != nil || snap.Token == "" || len(snap.Actions) != 5 {
		t.Fatalf("%q, %+v, %v", snap.Token, snap.Actions, err)
	}
	verb := url.Values{"verb": {"switchover"}}
	for name, c := range map[string]struct {
		header []string
		want   int
	}{
		"without a token":             {nil, 403},
		"with another one":            {[]string{"X-Lockstep-Token", "guess"}, 403},
		"from another site":           {[]string{"X-Lockstep-Token", snap.Token, "Origin", "https://evil.example"}, 403},
		"from another site, newer":    {[]string{"X-Lockstep-Token", snap.Token, "Sec-Fetch-Site", "cross-site"}, 403},
		"by a name bound to it later": {[]string{"X-Lockstep-Token", snap.Token, "Host", "evil.example"}, 421},
	} {
		if code, _, _ := s.request("POST", "/act", verb, c.header...); code != c.want {
			t.Errorf("%s: %d", name, code)
		}
	}
	if code, _, _ := s.request("GET", "/act?verb=switchover", nil, "X-Lockstep-Token", snap.Token); code != http.StatusMethodNotAllowed {
		t.Errorf("by a link: %d", code)
	}
	if o := j.ordered(); len(o) != 0 {
		t.Fatalf("all the same: %q", o)
	}
	if code, why, _ := s.request("POST", "/act", verb, "X-Lockstep-Token", snap.Token, "Origin", s.srv.URL, "Sec-Fetch-Site", "same-origin"); code != 204 {
		t.Errorf("from the page: %d %s", code, why)
	}
	if code, _, _ := s.request("GET", "/", nil, "Host", "vmm.example:80"); code != 200 {
		t.Errorf("by a name that it has: %d", code)
	}
	if code, _, _ := s.request("POST", "/act", url.Values{"verb": {"format"}}, "X-Lockstep-Token", snap.Token); code != 400 {
		t.Errorf("an order that there is not: %d", code)
	}
	for _, v := range []string{"checkpoint", "pause", "resume", "failover", "fenced"} {
		s.request("POST", "/act", url.Values{"verb": {v}}, "X-Lockstep-Token", snap.Token)
	}
	if got, want := strings.Join(j.ordered(), ","), "switchover,checkpoint,pause by the page,resume,failover,fenced"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	j.refuse = &protect.StateError{Verb: "switchover", State: protect.Alone}
	if code, why, _ := s.request("POST", "/act", verb, "X-Lockstep-Token", snap.Token); code != 409 || strings.TrimSpace(why) != j.refuse.Error() {
		t.Errorf("what the job refuses: %d %q", code, why)
	}
}

func TestWithoutControlThereIsNothingToSteerWith(t *testing.T) {
	j := newJob(protect.Protected)
	s := serve(t, Config{Job: j})
	if snap, err := s.live("/live").next(); err != nil || snap.Token != "" || len(snap.Actions) != 0 {
		t.Errorf("%q, %+v, %v", snap.Token, snap.Actions, err)
	}
	if _, b, _ := s.request("GET", "/", nil); strings.Contains(b, "<button") || strings.Contains(b, "<dialog") {
		t.Error("the page has buttons")
	}
	if code, _, _ := s.request("POST", "/act", url.Values{"verb": {"pause"}}, "X-Lockstep-Token", s.page.token); code != 404 {
		t.Errorf("an order is answered with %d", code)
	}
	if len(j.ordered()) > 0 {
		t.Error("and carried out")
	}
}

func TestAPortAloneIsOnLoopback(t *testing.T) {
	for address, host := range map[string]string{"0": "127.0.0.1", ":0": "127.0.0.1", "127.0.0.1:0": "127.0.0.1"} {
		l, err := Listen(address)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.Addr().String(); !strings.HasPrefix(got, host+":") {
			t.Errorf("%q is at %s", address, got)
		}
		l.Close()
	}
}
