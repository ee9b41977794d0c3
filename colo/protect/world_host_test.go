package protect

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/event"

	"github.com/gocolo/lockstep/failover"
)

// A host is one process: its guest, its NIC and its job. A host that comes back
// is a new one.
type host struct {
	w     *world
	name  string
	guest *colotest.VM
	nic   *NIC
	proxy *Proxy // instead of nic, if output is compared
	job   *Job
	stop  context.CancelCauseFunc
	done  chan struct{}
	err   error // of Run, when done is closed
	dead  chan struct{}
	once  sync.Once

	ran      bool // the guest ran here when the host was halted
	restored bool // it was made from what was saved
	disk     *Disk
	image    *image
	wrote    [2][]write // by each vCPU, since its last frame
	second   second     // of a world that is twofold
	ails     ailing     // what of it does not work
	lean     bool       // it keeps no copy of the memory

	killed    atomic.Bool
	gone      atomic.Bool   // killed, and not only not heard any more
	noArbiter atomic.Bool   // the arbiter does not hear it
	deaf      atomic.Bool   // the arbiter hears it, and it does not hear the arbiter
	slow      atomic.Int64  // it hears that late, in nanoseconds
	tardy     atomic.Int64  // and answers so much later than it has done what it was asked for
	forget    atomic.Int64  // that many of its answers are lost
	hangs     atomic.Int64  // that many questions are never answered
	late      atomic.Int64  // that many of what it is asked for it does later
	twice     atomic.Bool   // and all of it again
	lag       atomic.Int64  // how slow the host is, in nanoseconds
	asked     atomic.Int64  // when its gate last said that a frame may leave
	toldSize  atomic.Int64  // how long the disk is, as the guest was told last; 0: it has not been told
	migrates  atomic.Bool   // it was asked to
	token     string        // of its claims
	copyOf    atomic.Uint64 // the last generation of which it has had the guest, or a whole copy

	mu      sync.Mutex
	terms   map[time.Duration]time.Duration // of records that it has read, as its clock measures them: those by the clock of rate 1
	still   chan struct{}                   // not nil: the process is stopped, until it is closed
	events  []event.Event
	told    string                  // the state that the job has told of last
	mixed   bool                    // its memory may be that of a synchronisation which has not been committed
	awaited map[chan struct{}]State // each is closed when the job tells of its state
	when    State
	hook    func() // called when the job comes to that state, once
}

// has notes that the host has the guest of a generation, or a whole copy of it.
func (h *host) has(generation uint64) {
	for was := h.copyOf.Load(); was < generation && !h.copyOf.CompareAndSwap(was, generation); was = h.copyOf.Load() {
	}
}

// on has f called when the job comes to a state, on the job's goroutine.
func (h *host) on(s State, f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.when, h.hook = s, f
}

// passes returns a channel that is closed when the job comes to a state, which it may
// leave again before anybody has looked.
func (h *host) passes(s State) <-chan struct{} {
	c := make(chan struct{})
	h.on(s, func() { close(c) })
	return c
}

// observe notes what the job tells.
func (h *host) observe(r event.Record) {
	if hook := h.note(r.Event); hook != nil {
		hook() // which may wait for this host
	}
}

// note returns what is to be called because of an event.
func (h *host) note(e event.Event) (hook func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.events = append(h.events, e)
	switch e := e.(type) {
	case event.CheckpointCommit:
		if s := h.job.session(); s != nil {
			h.has(s.peer.generation)
		}
		switch {
		case e.Mode != event.ModePrimary:
			h.mixed = false
		case e.Epoch == 0:
			h.trace("synchronises", 0)
		default:
			h.trace("checkpoint", int(e.Epoch))
		}
	case event.JobStatusChange:
		h.trace(e.State, int(e.Generation))
		h.told = e.State
		if e.State == Following.String() {
			h.mixed = true // from the first page of the synchronisation on (ram.CacheConfig.Overlap)
		}
		if h.w.manual {
			h.has(h.job.keeper.Generation())
		}
		for c, s := range h.awaited {
			if s.String() == e.State {
				close(c)
				delete(h.awaited, c)
			}
		}
		if h.hook != nil && e.State == h.when.String() {
			hook, h.hook = h.hook, nil
		}
	}
	return hook
}

// halt ends a host in good order and frees its guest.
func (h *host) halt() error {
	h.ran = h.job.State().runs()
	whole, followed := h.whole(), strings.Count(h.states(), "following")
	h.stop(errHalt)
	<-h.done
	h.mu.Lock()
	mixed := h.mixed
	h.mu.Unlock()
	if !h.lean && !mixed && !h.ails.loaded.Load() || h.ran || whole && strings.Count(h.states(), "following") == followed {
		h.w.verify(h)
	} // or its memory is that of a synchronisation that was cut off
	h.leave()
	return h.err
}

// whole reports whether the host follows, and has a guest to go on with.
func (h *host) whole() bool {
	s := h.job.session()
	if s == nil {
		return false
	}
	_, whole := s.committed()
	return whole
}

func (h *host) leave() {
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	if h.proxy != nil {
		if s, _ := h.proxy.Stats(); s != nil {
			h.w.agreed += s.Matched
			h.w.diverged += s.Diverged
		}
	}
	for i, o := range h.w.hosts {
		if o == h {
			h.w.hosts = append(h.w.hosts[:i:i], h.w.hosts[i+1:]...)
		}
	}
	if err := h.guest.Close(); err != nil {
		h.w.t.Error(err)
	}
}

// kill ends a host without a word: its connections break, or just fall silent, and
// nothing of it is heard any more. What runs on of it ends by itself.
func (h *host) kill(silent bool) {
	// First of all: its card fails when it is dead, and what runs on of it would say that it leaves.
	h.w.f.hush(h.name, h.w.other(h.name))
	h.killed.Store(true)
	h.gone.Store(true)
	h.resume()
	if h.w.f.ways != nil {
		h.w.f.ways.dies(h, silent)
		h.stop(errDead)
		return
	}
	h.w.f.part(h.name, h.w.other(h.name), silent)
	h.w.f.mu.Lock()
	delete(h.w.f.at, h.name)
	h.w.f.mu.Unlock()
	h.w.f.join(h.name, h.w.other(h.name))
	h.stop(errDead)
}

// bury waits for what ran on of a killed host.
func (h *host) bury() {
	<-h.done
	h.leave()
}

// is waits until the job is in a state and has told of it, with all that came before. One that
// goes by meanwhile, before anybody has looked, counts too.
func (h *host) is(s State) {
	h.w.t.Helper()
	told, now := h.awaits(s), h.job.State()
	h.mu.Lock()
	there := now == s && h.told == s.String()
	h.mu.Unlock()
	if !there {
		h.comes(s, told)
	}
}

// passed waits until the job has told of a state, since it began: it may have left that long ago.
func (h *host) passed(s State) {
	h.w.t.Helper()
	told := h.awaits(s)
	if !slices.Contains(strings.Fields(h.states()), s.String()) {
		h.comes(s, told)
	}
}

// awaits returns a channel that is closed when the job tells of a state.
func (h *host) awaits(s State) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.awaited == nil {
		h.awaited = make(map[chan struct{}]State)
	}
	c := make(chan struct{})
	h.awaited[c] = s
	return c
}

// comes waits for a channel of awaits.
func (h *host) comes(s State, told chan struct{}) {
	h.w.t.Helper()
	limit := time.NewTimer(time.Minute)
	defer limit.Stop()
	select {
	case <-told:
		return
	case <-h.done:
	case <-limit.C:
	}
	select {
	case <-told: // with the end of Run
	default:
		h.w.t.Fatalf("%s is %v, not %v: %+v", h.name, h.job.State(), s, h.job.Query())
	}
}

func (h *host) states() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var s []string
	for _, e := range h.events {
		if c, ok := e.(event.JobStatusChange); ok {
			s = append(s, c.State)
		}
	}
	return strings.Join(s, " ")
}

// heedsNothing is an arbiter that does not heed failover.Claim.From, as those of earlier versions did not.
type heedsNothing struct{ failover.Arbiter }

func (a heedsNothing) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	c.From = ""
	return a.Arbiter.Acquire(ctx, c)
}
