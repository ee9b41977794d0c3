package trial

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/oracle"
)

// patience is how long the parent waits for anything that should happen
// within a fraction of a second, or within one checkpoint interval.
const patience = time.Minute

// A Run is one pair of processes, from their start to the verdict: one is killed, or stopped,
// or the protection ends by order, and the other goes on.
type Run struct {
	pair
	gone     map[string]bool   // the process has ended
	last     map[string]uint64 // the last checkpoint that the host has
	parted   bool              // the pair is meant to end
	tookOver bool              // the survivor goes on alone
	gaveUp   string            // why the other does not go on; "": nothing is known of it
	closing  bool              // the hosts are meant to end
	stopped  *Stopped
}

// Result collects what a run has shown so far; it is complete when Do returns.
type Result struct {
	o       Config
	backend string
	seed    uint64

	target uint64 // checkpoints before the kill; 0: as many as it draws

	started     time.Time
	protected   time.Time // the initial synchronisation was over
	checkpoints []Checkpoint
	under       uint64 // the checkpoint that the primary is in, 0 between two
	throttled   []throttled

	victim   string // the side that is killed; empty: none
	killed   time.Time
	killedAt string        // where in a checkpoint it was killed, in words
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

	changes   []Change // of a series, in their order
	unplanned int      // changes that nobody has made

	histories []oracle.History
}

// failovers returns the times of the failovers of a series.
func (r *Result) failovers() []time.Duration {
	var f []time.Duration
	for _, c := range r.changes {
		if c.Kind != changeSwitched {
			f = append(f, c.Downtime)
		}
	}
	return f
}

// whose returns in words which side has the guest.
func (r *Result) whose() string {
	if len(r.changes) > 0 {
		return "host " + r.survivor
	}
	return "the " + r.survivor
}

// how returns what happened to the hosts, in words.
func (r *Result) how() string {
	if len(r.changes) == 0 {
		return r.killedAt
	}
	return fmt.Sprintf("%d changes of sides", len(r.changes))
}

// Results returns what the run has shown so far.
func (r *Result) Results() *Result { return r }

// Checkpoints returns how many checkpoints the run makes before the kill, to be asked for
// again; 0: it draws them.
func (r *Result) Checkpoints() int { return int(r.target) }

// throttled says how much the primary's guest was slowed down from some moment on.
type throttled struct {
	at      time.Time
	percent int
}

// failover returns the time from SIGKILL to the survivor's first frame; of several the median.
func (r *Result) failover() time.Duration {
	if f := r.failovers(); len(f) > 0 {
		return quantile(f, 0.5)
	}
	if r.killed.IsZero() || r.resumed.IsZero() {
		return 0
	}
	return r.resumed.Sub(r.killed)
}

// New makes a run of a config whose KillAt is a place, with processes of this program on a
// backend, that draws its random choices from seed and is shown by out.
func New(o Config, backend string, seed uint64, out *Printer) *Run {
	r := &Run{pair: newPair(o, backend, seed, out, Primary, Secondary), gone: make(map[string]bool), last: make(map[string]uint64)}
	r.target = 1 + r.rng.Uint64N(RepeatCheckpoints) // drawn in any case, so that a seed means the same
	if o.Checkpoints > 0 {
		r.target = uint64(o.Checkpoints)
	}
	if o.Kill != KillNone {
		r.victim = o.Kill
	}
	return r
}

// Do carries the run out and leaves nothing of it behind. The error is why
// there is no verdict.
func (r *Run) Do(ctx context.Context) error { return r.do(ctx, r.drive) }

// servers are the listeners of a run.
type servers struct {
	group     sync.WaitGroup
	listeners []net.Listener
}

// listen serves a new port of loopback until close, and returns its address.
func (s *servers) listen(serve func(net.Listener)) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	s.listeners = append(s.listeners, l)
	s.group.Go(func() { serve(l) })
	return l.Addr().String(), nil
}

// close returns when nothing is served any more.
func (s *servers) close() {
	for _, l := range s.listeners {
		l.Close()
	}
	s.group.Wait()
}

// createDisks makes the images of both sides, empty, if the guest has a disk, and says how to
// remove them.
func (r *Result) createDisks(sides ...string) (remove func() error, err error) {
	remove = func() error { return nil }
	if r.o.Disk == 0 {
		return remove, nil
	}
	dir := r.o.DiskDir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "lockstep-"); err != nil {
			return nil, err
		}
		remove = func() error { return os.RemoveAll(dir) }
	}
	r.images = make(map[string]string)
	for _, side := range sides {
		name := filepath.Join(dir, "lockstep-"+side+".img")
		r.images[side] = name
		// Of the last run, which has left its images here: what is known of them.
		err := os.Remove(name + ".lockstep")
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err == nil {
			err = createImage(name, int64(r.o.Disk))
		}
		if err != nil {
			return nil, errors.Join(err, remove())
		}
	}
	return remove, nil
}

// createImage makes an image that is empty.
func createImage(name string, size int64) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}
