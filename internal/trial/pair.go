package trial

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gocolo/lockstep/internal/killpoint"
	"github.com/gocolo/lockstep/internal/oracle"
	"github.com/gocolo/lockstep/internal/socket"
)

// A pair is two hosts that protect one guest by package protect, a process each, the client
// that the guest talks to, and the directory of the arbiter that decides which of the two has
// it. It belongs to one goroutine.
type pair struct {
	rng *rand.Rand
	out *Printer

	crew
	first, second string // the hosts' names; the guest begins its life on the first
	client        *client
	dir           string            // of the arbiter
	addr          map[string]string // where the hosts are reached
	output        string            // where the client is
	state         map[string]string // of each host's job, in the words of package protect; "": it has ended, or said nothing yet
	missed        []string          // pages that a dirty log lacked

	Result
}

func newPair(o Config, backend string, seed uint64, out *Printer, first, second string) pair {
	return pair{
		out: out, rng: rand.New(rand.NewPCG(seed, 0)), crew: newCrew(), first: first, second: second,
		addr: make(map[string]string), state: make(map[string]string),
		Result: Result{o: o, backend: backend, seed: seed},
	}
}

// other returns the host that is not that one.
func (p *pair) other(host string) string {
	if host == p.first {
		return p.second
	}
	return p.first
}

// do starts the hosts, calls drive, and leaves nothing behind. Its error says why there is no
// verdict.
func (p *pair) do(ctx context.Context, drive func(context.Context) error) (err error) {
	judge, err := oracle.New(p.o.Guest(p.seed))
	if err != nil {
		return err
	}
	still := watchStalls(time.Now)
	defer func() {
		if gap := still(); ctx.Err() == nil {
			err = stalled(err, gap, p.o.Lost)
		}
	}()
	p.client = newClient(judge, p.first)
	p.client.vlan = VLAN(p.o.VLAN)
	remove, err := p.createDisks(p.first, p.second)
	if err != nil {
		return err
	}
	defer func() { err = beside(err, remove()) }()
	if p.dir, err = os.MkdirTemp("", "lockstep-arbiter-"); err != nil {
		return err
	}
	defer func() { err = beside(err, os.RemoveAll(p.dir)) }()
	if err := p.addresses(); err != nil {
		return err
	}
	servers := new(servers)
	defer servers.close()
	if p.output, err = servers.listen(p.client.serve); err != nil {
		return err
	}
	defer func() { // whatever happened, no process and no reader stays
		p.end(err == nil || ctx.Err() != nil)
		err = p.explain(err)
	}()

	p.started = time.Now()
	for _, host := range []string{p.second, p.first} {
		if err := p.start(p.config(host, host == p.first)); err != nil {
			return err
		}
	}
	return drive(ctx)
}

// addresses finds an address for each host: a host that comes back has the one that it had, which
// nobody else takes in the meantime.
func (p *pair) addresses() error {
	found, err := socket.ChooseTCP(2)
	if err != nil {
		return err
	}
	p.addr[p.first], p.addr[p.second] = found[0], found[1]
	return nil
}

// maxBeat is the longest time between two heartbeats.
const maxBeat = 200 * time.Millisecond

// config returns the configuration of a host; start says that the guest begins its life there.
func (p *pair) config(host string, start bool) SideConfig {
	o := &p.o
	cfg := SideConfig{
		Side: host, Backend: p.backend, Guest: o.Guest(p.seed), Memory: o.Mem, Disk: p.images[host], Client: p.output,
		Pace: o.Pace, Mode: o.Mode, VLAN: VLAN(o.VLAN), Interval: o.Interval, EarlyResume: o.EarlyResume, Throttle: o.Throttle / 100,
		Keep: o.Keep, VerifyDirty: o.VerifyDirty, Seed: p.seed,
		Listen: p.addr[host], Dial: p.addr[p.other(host)], Arbiter: filepath.Join(p.dir, "guest"), Start: start,
		Beat: min(maxBeat, o.Lost/10), Lost: o.Lost, Term: o.Term,
	}
	cfg.handles(o)
	if host == p.victim && o.KillAt != killpoint.AtAny {
		cfg.StopAt, cfg.StopEpoch = o.KillAt, p.target+1
	}
	return cfg
}

// wait is how a pair waits for what should happen within a fraction of a second, a checkpoint
// interval or a term.
func (p *pair) wait(handle func(message) error) wait {
	return wait{
		handle: p.settling(handle), limit: patience + 2*p.o.Interval + 2*p.o.Term,
		progress: func() int { return 0 }, look: func() {},
	}
}

// settling returns a function that handles a message and, if no other message waits, has the
// Printer print what has gathered.
func (p *pair) settling(handle func(message) error) func(message) error {
	return func(m message) error {
		err := handle(m)
		if len(p.inbox) == 0 {
			p.out.settle()
		}
		return err
	}
}

// states adds the states of the hosts to an error.
func (p *pair) states(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w (%s: %q, %s: %q)", err, called(p.first), p.state[p.first], called(p.second), p.state[p.second])
}

// miss records a page that the dirty log of a host lacked.
func (p *pair) miss(host string, page MissedPage) {
	p.missed = append(p.missed, fmt.Sprintf("%s's %s at %#x", called(host), page.Block, page.Offset))
}

// verified returns an error that names what the dirty logs have lacked.
func (p *pair) verified() error {
	n := len(p.missed)
	if n == 0 {
		return nil
	}
	return fmt.Errorf("written, and in no dirty log, %d times: %s", n, strings.Join(p.missed[:min(n, 10)], ", "))
}

// beside joins err and other, if both are errors.
func beside(err, other error) error {
	if other == nil {
		return err
	}
	return errors.Join(err, other)
}
