package watch

import (
	"context"
	"crypto/rand"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/rebind"
)

// A Job is watched by a page: a [protect.Job]. The methods are called from the
// goroutines of requests. If it has a method OutputLatency, as a protect.Job does, the page
// shows how long packets really waited; if not, the longest that each checkpoint can have
// held output.
type Job interface {
	Query() protect.Info
	Pause(ctx context.Context, reason string) error
	Resume() error
	Checkpoint() error
	Failover() error
	Fenced() error
	Switchover(ctx context.Context) error
}

// MaxViewers is how many browsers can watch a page at a time; further ones are
// told to come back later.
const MaxViewers = 32

// Span is how far back the picture goes.
const Span = time.Minute

const (
	sampled  = 250 * time.Millisecond // from one query of the job to the next
	between  = 500 * time.Millisecond // from one message to the next, at least
	silence  = time.Second            // from one message to the next, at most
	stalling = 10 * time.Second       // how long a browser may take no byte, and for the whole of an order
	asking   = time.Minute            // how long a pause asks the arbiter
	moving   = 10 * time.Minute       // how long a switchover may take
)

// Config says what a page shows and who may use it. Job is required.
type Config struct {
	Job Job

	// Events is the job's bus. Nil: the page shows no checkpoints and no events.
	Events *event.Bus

	// Control gives the page its buttons.
	Control bool

	// Hosts are the names under which browsers may ask for the page, besides
	// localhost and every address.
	Hosts []string

	// Metrics adds further metrics of the host to those of the page, of its networks,
	// say. It is called by the goroutines of requests. Nil: nothing is added.
	Metrics func(*metrics.Set)

	// Logger hears of orders (Info) and, once a second at most, of requests that are refused
	// (Warn). Nil: nothing is logged.
	Logger *slog.Logger
}

// A Page is an http.Handler. Its methods may be called from any goroutine.
type Page struct {
	cfg     Config
	log     *slog.Logger
	mux     http.ServeMux
	origin  *http.CrossOriginProtection
	token   string        // what an order must carry
	boot    string        // tells a browser that the process has restarted
	viewers chan struct{} // holds one value for each browser that watches
	over    chan struct{} // closed when Run has returned

	counts metrics.Recorder

	refusals struct {
		sync.Mutex
		told time.Time // when the last was logged
		more int       // that were not, since then
	}

	mu      sync.Mutex
	rec     record
	changed chan struct{} // closed and replaced when there is something new
	ending  sync.Once
}

// New makes the page of cfg.Job, which a host serves as an http.Handler while Run, on a goroutine of
// the host's, hears the events and samples the figures.
func New(cfg Config) *Page {
	p := &Page{
		cfg: cfg, log: cfg.Logger, origin: http.NewCrossOriginProtection(), token: rand.Text(), boot: rand.Text(),
		viewers: make(chan struct{}, MaxViewers), over: make(chan struct{}), changed: make(chan struct{}),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.mux.HandleFunc("GET /{$}", p.index)
	p.mux.HandleFunc("GET /live", p.live)
	p.mux.HandleFunc("GET /state", p.state)
	p.mux.HandleFunc("GET /timeline.svg", p.picture)
	p.mux.HandleFunc("GET /metrics", p.metrics)
	if cfg.Control {
		p.mux.HandleFunc("POST /act", p.act)
	}
	return p
}

// Run records what happens, for all who watch, until ctx ends; then it ends the requests
// of browsers that watch, and returns the cause. The page shows nothing that happened
// before Run. It is called once.
func (p *Page) Run(ctx context.Context) error {
	defer p.ending.Do(func() { close(p.over) })
	defer p.cfg.Events.SubscribeAll(p.note)()
	guest := p.cfg.Job.Query().Guest
	defer p.cfg.Events.SubscribeAll(func(r event.Record) {
		r.Guest = guest // the bus of a single guest may leave its name out
		p.counts.Record(r)
	})()
	tick := time.NewTicker(sampled)
	defer tick.Stop()
	for {
		in := p.cfg.Job.Query() // not with mu: an event may wait for mu while the job waits for the event
		left := p.latency()
		p.mu.Lock()
		now := time.Now()
		if left != nil {
			p.rec.leaving(now, left)
		}
		if p.rec.sample(now, in) {
			p.wake()
		}
		p.mu.Unlock()
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// latencyCounter is a Job that says how long packets were kept that have left, as a
// [protect.Job] does.
type latencyCounter interface {
	OutputLatency() (l event.Latency, ok bool)
}

// latency returns how long packets were kept; nil if nobody counts that.
func (p *Page) latency() *event.Latency {
	c, ok := p.cfg.Job.(latencyCounter)
	if !ok {
		return nil
	}
	if l, ok := c.OutputLatency(); ok {
		return &l
	}
	return nil
}

// note records an event.
func (p *Page) note(r event.Record) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rec.event(r)
	p.wake()
}

// wake tells those who watch that there is something new. It is called with mu
// held.
func (p *Page) wake() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	deadline(w, stalling)
	if !rebind.Known(r.Host, p.cfg.Hosts) {
		p.refused("a page was asked for by a name that it does not have", "host", r.Host, "from", r.RemoteAddr)
		http.Error(w, rebind.Refused, http.StatusMisdirectedRequest)
		return
	}
	p.mux.ServeHTTP(w, r)
}

// refused logs that a request was refused, once a second at most: whoever reaches the page could fill
// the host's log otherwise.
func (p *Page) refused(what string, args ...any) {
	r, now := &p.refusals, time.Now()
	r.Lock()
	defer r.Unlock()
	if now.Sub(r.told) < time.Second {
		r.more++
		return
	}
	if r.more > 0 {
		args = append(args, "not-told", r.more)
	}
	r.told, r.more = now, 0
	p.log.Warn(what, args...)
}

// deadline bounds how long a browser may take no byte from now on, where the server supports
// that; 0: no bound.
func deadline(w http.ResponseWriter, d time.Duration) {
	var t time.Time
	if d > 0 {
		t = time.Now().Add(d)
	}
	http.NewResponseController(w).SetWriteDeadline(t)
}
