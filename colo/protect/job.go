package protect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

var (
	errOrdered  = errors.New("a failover was ordered")
	errRanTwice = errors.New("protect: Run was called before")
	errLeft     = errors.New("protect: Run has ended")
	errMoved    = errors.New("the job has moved on")
)

// A Job protects one guest on one host, in Run. The verbs, State and Query may
// be called from any goroutine at any time.
type Job struct {
	cfg      Config
	vm       *vm
	keeper   *failover.Keeper
	manual   *failover.Manual // nil: there is an arbiter
	asked    *toldArbiter     // the arbiter, if there is one
	channels []string         // of disks and networks
	token    string           // of this process, for the arbiter
	verbs    chan struct{}    // capacity one: of the verbs that take time, one at a time
	port     *Port            // where this host is reached, from Run on

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced with each change of state
	m          machine
	since      time.Time
	told       told
	ran        bool
	generation uint64 // that this host holds or has followed
	acts       map[*activity]struct{}
	current    *session
	word       word // what this host holds by Fenced, while the arbiter has not heard of it
	given      bool // current's arbiter has refused, for good: the guest here is fenced off from its disks
	pending    *pending
	joined     chan *pending
	lastErr    error
	lastErrAt  time.Time
	loss       error // why the guest here is unprotected, since the other host was lost; nil: it was not; guarded by mu
	stats      Stats
	wrote      uint64          // the generation of the disks that were the guest's own when Run began; 0: they were not
	delay      time.Duration   // CheckpointDelay, or what SetDelay has said since
	entries    []vmstate.Entry // of the guest's devices, as describe has found them
	known      bool            // what the disks hold has been read, which begin does; guarded by mu
	claims     bool            // the guest is asked for, to start it, or will be; guarded by mu
	vain       int             // sessions in a row that have left the guest over a disk that has failed; Run's alone
	misfit     string          // why the last primary that came does not fit, as misfits has told; "": it does; guarded by mu
	strange    bool            // it has been told that a host with a certificate for another name has come; guarded by mu
	unfit      error           // why this host follows nobody, while it waits; nil: it may; guarded by mu
	restart    uint64          // the generation of disks that the guest may be started from; Run's alone
	background func(func())    // starts a goroutine that Run waits for; nil: Run does not run
	life       context.Context // ends when Run no longer leads or follows; nil: it does not yet, or any more

	base     *base      // of this host as a primary; Run's alone
	copy     *ram.Cache // of this host as a secondary, between two sessions; Run's alone
	hindered string     // what has last kept this host from its side of a session, as unable has told; "": nothing; Run's alone

	took  string    // token of the session in which this host has taken the guest over last; "": none; written by Run alone, with mu
	holds *position // what copy is; nil: there is none; guarded by mu

	departed     string // token of the session in which this host has followed last, and from which it never goes on; "": none; guarded by mu
	departedFrom string // the host that led it; guarded by mu

	saves  chan *saving // saves that are asked for, to the function rest, which makes them
	saving bool         // Resume is refused

	orders  sync.WaitGroup // of questions to the arbiter that are asked in life; Run waits for them
	holding chan struct{}  // capacity one: held while a generation is recorded on the disks, which may wait
	telling chan struct{}  // capacity one: held while the arbiter is told of an operator's word, which may wait

	asking, watching, fencing, recording outside // calls of the arbiter, of its Watch, of the fencer, and of disks that are to record a generation for an operator's order
}

// New makes a job, which has the networks and disks of its Config from then on: another job
// that is given them is refused. An error says what cannot work.
func New(cfg Config) (*Job, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	disown, err := own(cfg.Network)
	if err != nil {
		return nil, err
	}
	j, err := newJob(cfg)
	if err != nil {
		disown()
	}
	return j, err
}

// newJob makes a job of a Config that can work.
func newJob(cfg Config) (*Job, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	j := &Job{
		cfg: cfg, channels: cfg.channels(), vm: newVM(cfg.Guest, cfg.Network, cfg.Disks),
		token: failover.NewToken(), delay: cfg.CheckpointDelay, verbs: make(chan struct{}, 1), acts: map[*activity]struct{}{}, holding: make(chan struct{}, 1), telling: make(chan struct{}, 1), changed: make(chan struct{}), joined: make(chan *pending, 1), saves: make(chan *saving), since: time.Now(),
	}
	j.told.ended.L = &j.mu
	if cfg.Arbiter != nil {
		j.cfg.Arbiter = j.outsideOf(cfg.Arbiter)
	}
	j.asked = &toldArbiter{Arbiter: j.cfg.Arbiter, j: j}
	keep := failover.KeeperConfig{Arbiter: j.asked, Holder: cfg.Host, Token: j.token, Term: cfg.Term, Lost: j.deposed}
	if cfg.Arbiter == nil {
		j.manual = failover.NewManual(failover.Record{})
		keep.Arbiter, keep.Term = j.manual, -1
	}
	var err error
	if j.keeper, err = failover.NewKeeper(keep); err != nil {
		return nil, err
	}
	for _, d := range cfg.Disks { // before anything is done with one that another job has
		if err := d.isFree(); err != nil {
			return nil, err
		}
	}
	if err := recoverDisks(cfg.Disks); err != nil {
		return nil, err
	}
	for _, d := range cfg.Disks {
		if err := d.adopt(j.keeper.Gate(), cfg.Events, j.diskFull); err != nil {
			return nil, err
		}
		d.log = j.diskLog()
	}
	if s := cfg.Saved; s != nil && s.taken.Swap(true) { // last: where New fails, it can be called again with it
		return nil, errors.New("protect: a Saved is for one job")
	}
	return j, nil
}

// Gate returns the gate that is open while this host may act for the guest. It
// is given to Network; whatever else of the guest the world sees asks it too.
func (j *Job) Gate() Gate { return j.keeper.Gate() }

// Run protects the guest until it ends here for good: it returns nil after
// Complete, the context's cause when that ends, and otherwise what failed. The
// guest is paused then, and the arbiter knows that this host does not have it any
// more, unless it could not be asked. No goroutine outlives Run. It may be called
// once.
func (j *Job) Run(ctx context.Context) error {
	j.mu.Lock()
	if j.ran {
		j.mu.Unlock()
		return errRanTwice
	}
	j.ran = true
	j.mu.Unlock()

	port, err := j.listen()
	if err != nil {
		if s := j.cfg.Saved; s != nil {
			err = errors.Join(err, s.letGo(err))
		}
		j.note(err)
		j.do(failed, err.Error())
		return err
	}

	// It ends with ctx at once: a session that settles who goes on must not take the guest over for
	// a job whose end has only not been noticed yet.
	all, end := context.WithCancelCause(ctx)
	stop := wait.AtEnd(ctx, func() {
		end(context.Cause(ctx)) // first: ctx may have got here before it ends what was made of it, and a job that was stopped is not taken for one that is completed
		j.do(stopped, context.Cause(ctx).Error())
	})
	fails := func(err error) { j.note(err); end(err) }
	var group sync.WaitGroup
	defer j.logDisks()()
	j.mu.Lock()
	j.background = func(f func()) { group.Go(f) }
	j.life = all
	j.mu.Unlock()
	// What a job needs ends with the job, but for what it says goodbye with.
	tools, shut := context.WithCancelCause(context.WithoutCancel(ctx))
	group.Go(func() { j.keeper.Run(tools) })
	if port != j.cfg.Peer.Port {
		group.Go(func() {
			if err := port.Serve(tools); tools.Err() == nil {
				fails(fmt.Errorf("protect: port: %w", err))
			}
		})
	}
	if len(j.cfg.Disks) > 0 {
		group.Go(func() { j.watchDisks(tools) })
	}
	group.Go(func() { j.watchSubscribers(tools) })
	if t := port.cfg.TLS; t != nil {
		group.Go(func() { j.watchCertificate(tools, t) })
	}
	for i, n := range j.cfg.Network {
		group.Go(func() {
			h := NetworkHost{Gate: j.keeper.Gate(), Checkpoint: j.request}
			if err := n.Run(tools, h); tools.Err() == nil {
				fails(fmt.Errorf("protect: network %d: %w", i, err))
			}
		})
	}

	if s := j.cfg.Saved; s != nil {
		group.Go(func() {
			if err := s.fill(tools); err != nil && tools.Err() == nil {
				fails(err)
			}
		})
	}

	err = j.live(all)
	stop() // it says that the job is concluded
	if over, ok := err.(*StateError); ok && over.State == Concluded && all.Err() != nil {
		err = context.Cause(all) // the step that could not be taken was the first to see it
	}
	// Nobody claims anything for this host any more: what a claim gets that is under
	// way is given back with the rest.
	j.mu.Lock()
	j.life = nil
	j.mu.Unlock()
	end(nil)
	j.orders.Wait()
	if e := j.depart(ctx); e != nil {
		j.note(e)
		err = errors.Join(err, e)
	}
	j.mu.Lock()
	j.background = nil
	j.mu.Unlock()
	port.unregister(j.cfg.Name)
	j.refuseAll()
	shut(errMoved)
	group.Wait()
	j.allTold()
	j.keeper.Drop()
	if s := j.cfg.Saved; s != nil {
		err = errors.Join(err, s.Close())
		if j.vm.isRunning() {
			// What kept it from being paused has been waiting for memory, on a host
			// whose vCPUs cannot be paused in that.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), j.cfg.PeerTimeout)
			defer cancel()
			err = errors.Join(err, j.vm.Pause(ctx))
		}
	}
	j.allReturned()
	return err
}

// listen makes this host reachable for the other one.
func (j *Job) listen() (port *Port, err error) {
	if port = j.cfg.Peer.Port; port == nil {
		if port, err = Listen(j.cfg.Peer.Listen, j.cfg.Peer.PortConfig); err != nil {
			return nil, err
		}
	}
	if err := port.register(j.cfg.Name, j); err != nil {
		if port != j.cfg.Peer.Port {
			port.Close()
		}
		return nil, err
	}
	j.port = port
	return port, nil
}

// live goes from state to state.
func (j *Job) live(ctx context.Context) error {
	err := j.describe()
	if err == nil && j.cfg.Saved != nil {
		err = j.cfg.Saved.commit()
	}
	if err == nil {
		err = j.begin(ctx)
	}
	defer func() { j.keepMemory(Concluded) }()
	for err == nil {
		state := j.State()
		j.keepMemory(state)
		switch state {
		case Waiting:
			err = j.follow(ctx)
		case Alone:
			err = j.lead(ctx)
		case Paused, Cancelled:
			err = j.rest(ctx)
		case Concluded:
			if err = context.Cause(ctx); err == nil && ctx.Err() == nil {
				return nil // completed
			}
		default:
			err = fmt.Errorf("protect: nothing is done while %v", j.State())
		}
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}
	if ctx.Err() == nil {
		j.note(err)
		j.do(failed, err.Error())
	} else {
		j.do(stopped, err.Error())
	}
	return err
}

// rest waits while the job is paused or cancelled, and saves the guest if it is to. An error is that
// of a guest that stands still since, and cannot be resumed.
func (j *Job) rest(ctx context.Context) error {
	act, end := j.while(ctx, Paused, Cancelled)
	defer end()
	for {
		select {
		case s := <-j.saves:
			err, stands := j.store(act, s)
			s.done <- err
			if stands != nil {
				return stands
			}
		case <-act.Done():
			return nil
		}
	}
}

func (c *Config) publish(e event.Event) { c.Events.Publish(e) }

// note keeps an error for Query; nil is none.
func (j *Job) note(err error) {
	if err == nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lastErr, j.lastErrAt = j.beside(err), time.Now()
}

// request asks for a checkpoint, if there is a primary.
func (j *Job) request(cause event.Cause) {
	if s := j.session(); s != nil && s.primary != nil {
		s.primary.RequestCheckpoint(cause)
	}
}

// inBackground does something on a goroutine that Run waits for, if Run runs.
func (j *Job) inBackground(f func()) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.background != nil {
		j.background(f)
	}
}

// diskFull asks for a checkpoint, whichever side this host is. It does not wait.
func (j *Job) diskFull() {
	j.mu.Lock()
	s, spawn := j.current, j.background
	if s != nil && s.primary == nil && spawn != nil {
		spawn(func() { s.peer.say(note{Say: sayFull}) })
	}
	j.mu.Unlock()
	j.request(event.CauseLimit)
}

func (j *Job) session() *session {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.current
}

// tookOverHere reports whether a session's Run returned because the guest runs here.
func tookOverHere(err error) bool { return err == nil || errors.Is(err, colo.ErrDegraded) }
