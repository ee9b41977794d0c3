package trial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/killpoint"
	"github.com/gocolo/lockstep/internal/oracle"
)

// patience is how long the parent waits for anything that should happen
// within a fraction of a second, or within one checkpoint interval.
const patience = 20 * time.Second

// generation of the pair. A survivor that is protected again begins the next.
const generation = 1

// A Run is one pair of processes, from their start to the verdict.
type Run struct {
	o       Config
	backend string
	seed    uint64
	rng     *rand.Rand
	out     *Printer

	inbox   chan message
	client  *client
	witness *witness
	sides   map[string]*process
	gone    map[string]bool // the process has ended

	Target uint64 // checkpoints before the kill; set by New
	Result
}

// Result is what a run has shown so far; it is complete when Do returns.
type Result struct {
	started     time.Time
	protected   time.Time // the initial synchronisation was over
	checkpoints []Checkpoint
	under       uint64 // the checkpoint that the primary is in, 0 between two
	throttled   []throttled

	victim   string // or ""
	killed   time.Time
	killedAt string        // in words
	woken    time.Time     // with SIGCONT; zero: it was killed
	late     int           // frames that the victim has let go since
	lateFor  time.Duration // until the last of them
	resumed  time.Time     // first frame of the survivor after it took over
	frames   map[string][]arrival

	survivor string
	epoch    uint64         // that the survivor went on from
	exit     event.COLOExit // the survivor's
	oracle.Verdict

	images  map[string]string // of the sides' disks
	traffic Traffic           // of the primary's guest, as last told

	listening *Addresses
	stopped   *Stopped
	ends      map[string]*Ended
	histories []oracle.History
	missed    []string // pages that a dirty log lacked
}

// throttled is how much the primary's guest was slowed down from then on.
type throttled struct {
	at      time.Time
	percent int
}

// failover is the time from SIGKILL to the survivor's first frame.
func (r *Result) failover() time.Duration {
	if r.killed.IsZero() || r.resumed.IsZero() {
		return 0
	}
	return r.resumed.Sub(r.killed)
}

// New makes a run of a config whose KillAt is a place, with processes of this program on a
// backend, that draws its random choices from seed and is shown by out.
func New(o Config, backend string, seed uint64, out *Printer) *Run {
	r := &Run{
		o: o, backend: backend, seed: seed, out: out,
		rng:   rand.New(rand.NewPCG(seed, 0)),
		inbox: make(chan message, 64),
		sides: make(map[string]*process), gone: make(map[string]bool),
		witness: &witness{generation: generation, log: out.claim},
		Result:  Result{ends: make(map[string]*Ended)},
	}
	r.Target = 1 + r.rng.Uint64N(RepeatCheckpoints) // drawn in any case, so that a seed means the same
	if o.Checkpoints > 0 {
		r.Target = uint64(o.Checkpoints)
	}
	if o.Kill != KillNone {
		r.victim = o.Kill
	}
	return r
}

// Do carries the run out and leaves nothing of it behind. The error is why
// there is no verdict.
func (r *Run) Do(ctx context.Context) (err error) {
	oracle, err := oracle.New(r.o.Guest(r.seed))
	if err != nil {
		return err
	}
	r.client = newClient(oracle)
	r.client.vlan = VLAN(r.o.VLAN)
	if r.o.Disk > 0 {
		remove, err := r.createDisks()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, remove()) }()
	}
	var servers, readers sync.WaitGroup
	listen := func(serve func(net.Listener)) (l net.Listener, err error) {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			servers.Go(func() { serve(l) })
		}
		return l, err
	}
	output, err := listen(r.client.serve)
	if err != nil {
		return err
	}
	defer servers.Wait()
	defer output.Close()
	claims, err := listen(r.witness.serve)
	if err != nil {
		return err
	}
	defer claims.Close()
	defer func() { // whatever happened, no process and no reader stays
		for _, p := range r.sides {
			p.in.Close() // which it takes as an order to end
		}
		kill := func() {
			for _, p := range r.sides {
				p.kill()
			}
		}
		if err == nil || ctx.Err() != nil {
			kill()
		} else {
			// A side may be about to say what the other only suffers from.
			defer time.AfterFunc(lastWords, kill).Stop()
		}
		go func() { readers.Wait(); close(r.inbox) }()
		for range r.inbox {
		}
		err = r.explain(err)
	}()

	r.started = time.Now()
	for _, side := range []string{Secondary, Primary} {
		p, err := start(r.config(side, output.Addr().String(), claims.Addr().String()), r.inbox, &readers)
		if err != nil {
			return err
		}
		r.sides[side] = p
	}
	return r.drive(ctx)
}

// PIDs returns the processes that the run has started, by their sides.
func (r *Run) PIDs() map[string]int {
	pids := make(map[string]int)
	for side, p := range r.sides {
		pids[side] = p.pid()
	}
	return pids
}

// lastWords is how long a side may take to end when a run has failed.
const lastWords = time.Second

// explain adds to the error of a run what the sides have said.
func (r *Run) explain(err error) error {
	for side, p := range r.sides {
		said := p.stderr.String()
		if err != nil && said != "" && said != ErrOrphan.Error() && !strings.Contains(err.Error(), said) {
			err = fmt.Errorf("%w\nthe %s said: %s", err, side, said)
		}
	}
	return err
}

// createDisks makes the images of both sides, empty, and says how to remove them.
func (r *Run) createDisks() (remove func() error, err error) {
	remove = func() error { return nil }
	dir := r.o.DiskDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "lockstep-"); err != nil {
			return nil, err
		}
		remove = func() error { return os.RemoveAll(dir) }
	}
	r.images = make(map[string]string)
	for _, side := range []string{Primary, Secondary} {
		name := filepath.Join(dir, "lockstep-"+side+".img")
		r.images[side] = name
		f, err := os.Create(name)
		if err == nil {
			err = errors.Join(f.Truncate(int64(r.o.Disk)), f.Close())
		}
		if err != nil {
			return nil, errors.Join(err, remove())
		}
	}
	return remove, nil
}

func (r *Run) config(side, client, witness string) SideConfig {
	cfg := SideConfig{
		Side: side, Backend: r.backend, Guest: r.o.Guest(r.seed), Memory: r.o.Mem,
		Disk: r.images[side], Client: client, Witness: witness, Generation: generation,
		Mode: r.o.Mode, VLAN: VLAN(r.o.VLAN), Interval: r.o.Interval, Lost: r.o.Lost, EarlyResume: r.o.EarlyResume, Throttle: r.o.Throttle / 100, Seed: r.seed,
		VerifyDirty: r.o.VerifyDirty,
	}
	cfg.QMP, _ = MonitorOf(r.o.QMP, side) // the options were checked
	if side == r.victim && r.o.KillAt != killpoint.AtAny {
		cfg.StopAt, cfg.StopEpoch = r.o.KillAt, r.Target+1
	}
	return cfg
}
