package watch

import (
	"bufio"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/timeline"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// job is a job that says what it is told to say, and notes what it is ordered.
type job struct {
	mu     sync.Mutex
	info   protect.Info
	orders []string
	refuse error
}

func newJob(s protect.State) *job {
	j := &job{info: protect.Info{Guest: "db1", Host: "a", Peer: "b", State: s, Role: event.ModePrimary, Generation: 3, Open: true, Until: time.Now().Add(3 * time.Second), Since: time.Now()}}
	j.info.Session = &colo.Info{State: colo.StateProtected, Mode: event.ModePrimary, LastMode: event.ModePrimary, Epoch: 12}
	return j
}

func (j *job) Query() protect.Info {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.info
}

func (j *job) order(s string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.orders = append(j.orders, s)
	return j.refuse
}

func (j *job) ordered() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.orders)
}

func (j *job) Pause(_ context.Context, reason string) error { return j.order("pause " + reason) }
func (j *job) Resume() error                                { return j.order("resume") }
func (j *job) Checkpoint() error                            { return j.order("checkpoint") }
func (j *job) Failover() error                              { return j.order("failover") }
func (j *job) Fenced() error                                { return j.order("fenced") }
func (j *job) Switchover(ctx context.Context) error {
	if ctx.Done() != nil {
		return errors.New("a browser that leaves takes its order with it")
	}
	return j.order("switchover")
}

// A site is a page and its server.
type site struct {
	t    *testing.T
	page *Page
	srv  *httptest.Server
	bus  event.Bus
	stop func()
}

func serve(t *testing.T, cfg Config) *site {
	s := &site{t: t}
	cfg.Events = &s.bus
	s.page = New(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { s.page.Run(ctx) })
	s.srv = httptest.NewServer(s.page)
	s.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(func() { s.stop(); s.srv.Close() })
	hears := func() bool { // Run has subscribed before it looks at the job
		s.page.mu.Lock()
		defer s.page.mu.Unlock()
		return len(s.page.rec.samples) > 0
	}
	for end := time.Now().Add(time.Minute); !hears(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the page never looks at its job")
		}
	}
	return s
}

// request is one of a browser, or of somebody who pretends to be one.
func (s *site) request(method, path string, body url.Values, header ...string) (int, string, http.Header) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.srv.URL+path, strings.NewReader(body.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	a, err := s.srv.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return a.StatusCode, string(b), a.Header
}

// A stream is what a browser hears.
type stream struct {
	t    *testing.T
	body io.ReadCloser
	r    *bufio.Reader
}

func (s *site) live(path string) *stream {
	s.t.Helper()
	a, err := s.srv.Client().Get(s.srv.URL + path)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { a.Body.Close() })
	if a.StatusCode != http.StatusOK {
		s.t.Fatal(a.Status)
	}
	return &stream{s.t, a.Body, bufio.NewReader(a.Body)}
}

func (s *stream) next() (snap snapshot, err error) {
	for {
		l, err := s.r.ReadString('\n')
		if err != nil {
			return snap, err
		}
		if data, ok := strings.CutPrefix(l, "data: "); ok {
			return snap, json.Unmarshal([]byte(data), &snap)
		}
	}
}

// until reads until there is what is looked for.
func (s *stream) until(what string, ok func(snapshot) bool) snapshot {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		snap, err := s.next()
		if err != nil {
			s.t.Fatalf("%s: %v", what, err)
		}
		if ok(snap) {
			return snap
		}
	}
	s.t.Fatalf("%s never comes", what)
	return snapshot{}
}

func TestAPageTellsWhatHappensAsItHappens(t *testing.T) {
	j := newJob(protect.Protected)
	s := serve(t, Config{Job: j})
	live := s.live("/live?width=400")
	first, err := live.next()
	if err != nil || first.State != "protected" || first.Sentence != "The guest runs here, on host a. Host b has every checkpoint." || first.Tone != "good" {
		t.Fatalf("%+v, %v", first, err)
	}
	s.bus.Publish(event.CheckpointStart{Mode: event.ModePrimary, Epoch: 13, Cause: event.CauseTimer})
	s.bus.Publish(event.CheckpointCommit{Mode: event.ModePrimary, Epoch: 13, Cause: event.CauseDivergence, Pages: 5, Bytes: 20480, PauseNS: 1e6, TransferNS: 3e6, CommitNS: 1e6})
	s.bus.Publish(event.NetworkDiverged{Flow: event.Flow{Source: "10.0.0.2:80", Destination: "10.0.0.9:4000", Protocol: 6}, Reason: "data"})
	s.bus.Publish(event.HeartbeatLost{Mode: event.ModePrimary, Epoch: 13, Error: "silence"})
	got := live.until("the event", func(s snapshot) bool { return len(s.Events) > 0 })
	if e := got.Events[0]; e.Name != "HEARTBEAT_LOST" || e.Tone != "warn" || e.Text != "side primary, checkpoint 13, error silence" {
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
	j.mu.Lock()
	j.info.State, j.info.Peer = protect.Alone, ""
	j.mu.Unlock()
	got = live.until("the state", func(s snapshot) bool { return s.State == "alone" })
	if got.There.Host != "" || got.Boot != first.Boot {
		t.Errorf("%+v", got)
	}
}

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

// A timed is what a server gives a handler to answer by: it notes until when a browser
// may take no byte.
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

// The token is for the page, which is the only one that can read the stream.
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

// Whatever comes, a page keeps no more than it shows.
func TestWhatIsRememberedIsBounded(t *testing.T) {
	var r record
	now := time.Unix(1000, 0)
	for i := range maxCheckpoints + 100 {
		at := now.Add(time.Duration(i) * time.Millisecond)
		r.event(event.Record{Time: at, Event: event.CheckpointStart{Mode: event.Mode(fmt.Sprint(i)), Epoch: 1}})
		r.event(event.Record{Time: at, Event: event.CheckpointCommit{Mode: event.ModePrimary, Epoch: uint64(i)}})
		if i > 1000 {
			continue
		}
		r.event(event.Record{Time: at, Event: event.NetworkDiverged{Flow: event.Flow{Source: fmt.Sprint(i)}, Reason: "data"}})
		r.event(event.Record{Time: at, Event: event.NetworkDiverged{Flow: event.Flow{Source: "often"}, Reason: "data"}})
		r.event(event.Record{Time: at, Event: event.DiskSyncProgress{Disk: fmt.Sprint(i), Total: 1}})
		r.event(event.Record{Time: at, Event: event.ProtectionRefused{Error: strings.Repeat("ü", 3000)}})
		r.sample(at, protect.Info{})
	}
	if len(r.checkpoints) > maxCheckpoints || len(r.flows) > maxFlows || len(r.disks) > maxDisks || len(r.events) > maxEvents || len(r.samples) > maxSamples || len(r.started) > 4 {
		t.Errorf("%d checkpoints, %d flows, %d disks, %d events, %d samples, %d begun", len(r.checkpoints), len(r.flows), len(r.disks), len(r.events), len(r.samples), len(r.started))
	}
	if n := len(r.events[0].Text); n > maxText+8 {
		t.Errorf("an event of %d bytes", n)
	}
	if most := r.most(); most[0].Flow != "protocol 0 often → " || most[0].Count < 1001 {
		t.Errorf("what diverges most is lost: %+v", most[0])
	}
	if s := r.copies(); len(s) != maxDisks {
		t.Errorf("%d copies", len(s))
	}
}

func TestLatencyIsThatSinceTheLastLook(t *testing.T) {
	var r record
	in := protect.Info{Session: new(colo.Info)}
	h := &in.Session.Hold.Histogram
	h[3], h[9] = 10, 1
	r.sample(time.Unix(1, 0), in)
	if s := r.samples[0]; s.Latency != colo.BucketBound(3) || s.Longest != colo.BucketBound(9) {
		t.Errorf("%+v", s)
	}
	h[4]++
	r.sample(time.Unix(2, 0), in)
	if s := r.samples[1]; s.Latency != colo.BucketBound(4) || s.Longest != colo.BucketBound(4) {
		t.Errorf("%+v", s)
	}
	r.sample(time.Unix(3, 0), in)
	if s := r.samples[2]; s.Longest != 0 {
		t.Errorf("nothing since, but %+v", s)
	}
	*h = colo.Histogram{2: 1} // another session
	r.sample(time.Unix(4, 0), in)
	if s := r.samples[3]; s.Longest != colo.BucketBound(2) {
		t.Errorf("%+v", s)
	}
}

// A counter is a job that says how long packets were kept.
type counter struct {
	*job
	left event.Latency
}

func (c *counter) OutputLatency() (event.Latency, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left, true
}

func (c *counter) leave(packets int, after time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range packets {
		c.left.Add(after)
	}
}

func TestAPageShowsHowLongPacketsReallyWaited(t *testing.T) {
	c := &counter{job: newJob(protect.Protected)}
	c.job.info.Session.Hold.Histogram[20] = 3 // the bound of a checkpoint, which is of no interest here
	c.leave(50, time.Hour)                    // before anybody looked
	s := serve(t, Config{Job: c})
	live := s.live("/live?width=800")
	c.leave(98, 2*time.Millisecond)
	c.leave(2, 40*time.Millisecond)
	got := live.until("the figure", func(s snapshot) bool {
		return slices.ContainsFunc(s.Figures, func(f fact) bool { return strings.HasPrefix(f.Value, "half of 100 packets ") })
	})
	i := slices.IndexFunc(got.Figures, func(f fact) bool { return f.Name == "Output latency, last minute" })
	if v := got.Figures[i].Value; !regexp.MustCompile(`^half of 100 packets 2\.\d\d\x{a0}ms or less, 99 % 4[01]\.\d\x{a0}ms, longest 4[01]\.\d\x{a0}ms$`).MatchString(v) {
		t.Errorf("%q", v)
	}
	for _, want := range []string{"Output latency of packets that left, ms \\(median to 99 %\\)", "100 packets left; in the worst quarter of a second 99 of 100 were kept for 4[01]\\.\\d\\d ms or less\\."} {
		if !regexp.MustCompile(want).MatchString(got.Picture) {
			t.Errorf("the picture does not say %q", want)
		}
	}
	if strings.Contains(got.Picture, "at most, ms (median to longest)") {
		t.Error("the picture has the bounds of checkpoints")
	}
	if _, body, _ := s.request("GET", "/metrics", nil); !strings.Contains(body, `lockstep_output_latency_seconds_bucket{guest="db1",le="0.005"} 98`) || !strings.Contains(body, `lockstep_output_latency_seconds_count{guest="db1"} 150`) {
		t.Errorf("the metrics do not say it:\n%s", body)
	}
}

func TestLatencyOfPacketsIsThatSinceTheLastLook(t *testing.T) {
	var r record
	var left event.Latency
	look := func(second int64) timeline.Sample {
		at := time.Unix(second, 0)
		r.leaving(at, &left)
		r.sample(at, protect.Info{Session: new(colo.Info)})
		return r.samples[len(r.samples)-1]
	}
	left.Add(time.Hour)
	if s := look(1); s.Packets != 0 || s.Longest != 0 || s.Bound {
		t.Errorf("what left before the first look: %+v", s)
	}
	for i := range 100 {
		left.Add(time.Duration(i+1) * time.Millisecond)
	}
	if s := look(2); s.Packets != 100 || s.Latency/time.Millisecond < 50 || s.Latency > 54*time.Millisecond || s.P99 < 99*time.Millisecond || s.P99 > s.Longest || s.Longest > 108*time.Millisecond {
		t.Errorf("%+v", s)
	}
	if s := look(3); s.Packets != 0 || s.Latency != 0 || s.P99 != 0 {
		t.Errorf("nothing since, but %+v", s)
	}
	for i := range int64(1000) { // what the last minute had is forgotten
		look(4 + i)
	}
	if n := len(r.totals); n > totals+2 {
		t.Errorf("%d totals", n)
	}
	if f := r.latency(); len(f) != 1 || f[0].Value != "no packet has left" {
		t.Errorf("%+v", f)
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
