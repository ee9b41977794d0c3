package protect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A Guest is the VM that a job protects; the host implements this interface. One Guest
// serves for the whole life of the VM on this host, which can be its primary and its
// secondary any number of times. The guest is paused when Run is called.
//
// Its methods are called by one goroutine at a time. If it is a ram.LogSwitch its
// dirty log is switched on by the first session, and stays on between sessions, as long as
// the next may go on from what the other host has. So from the first session on nobody
// else reads the log, or switches it, while the job leads or waits: Pause or Cancel first.
//
// One that is a colo.Throttler can be slowed down, and one that is a colo.Stopper
// says how long it stood still.
type Guest interface {
	colo.VM
	ram.DirtyLog
	// Blocks returns its memory, the same for its life and on both hosts. While a host
	// follows, and has no whole copy yet, what is there is void.
	Blocks() []ram.Block
	// Register registers its devices, without its memory. It is called for each
	// session, and before it to tell the other host what there is, each time with
	// a registry that is new. An error of the first call ends Run. After a later one
	// the guest goes on as it is, unprotected: Info.LastError says why, and it is called
	// again, a second later.
	Register(reg *vmstate.Registry) error
}

// A Network is a NIC of the guest for its life, whichever side its host is. [Proxy], which
// compares, and [NIC], which does not, are two; a host may have its own. A session calls it as a
// colo.PrimaryNetwork or a colo.SecondaryNetwork, as its side is.
type Network interface {
	colo.PrimaryNetwork
	Commit(epoch uint64) error
	Resumed(epoch uint64) error
	// Register registers what the NIC has to keep over a change of sides. It is
	// called when Guest's Register is, and an error means the same.
	Register(reg *vmstate.Registry) error
	// Input lets packets from the network into the guest, or not. When
	// Input(false) returns none is being delivered. It is off at first.
	Input(on bool)
	// Drain returns when everything has left that may leave, or when ctx ends.
	// The guest stands still.
	Drain(ctx context.Context) error
	// Run moves packets until ctx ends, and returns the context's cause. It is
	// called once. An error before that ends the job: a host without a network
	// cannot serve its guest, and the other host may have one.
	Run(ctx context.Context, h NetworkHost) error
}

// NetworkHost has what a Network needs of the job: Network.Run gets it.
type NetworkHost struct {
	// Gate is asked for each packet that would leave. While it is shut packets
	// stay, in order.
	Gate Gate
	// Checkpoint asks for a checkpoint, if this host is a primary. It does not
	// block.
	Checkpoint func(event.Cause)
}

// A Gate says whether what is held may leave now. Opened returns a channel that is
// closed at the next opening; it is asked for only after Open said false.
// failover.Gate is one.
type Gate interface {
	Open() bool
	Opened() <-chan struct{}
}

// A Peer is the other host, and how the two reach each other.
type Peer struct {
	// Listen is the address at which this host is reached, and Dial that of the
	// other, which has a port. The host that has the guest dials; the other listens. Of a name that has
	// several addresses the one that answers first is taken.
	Listen, Dial string
	// Port takes the place of Listen for a host of many guests: it is served by
	// the caller, and has its own TLS.
	Port *Port
	// Dialer takes the place of Dial, for connections that are not TCP. It is called by
	// several goroutines at a time: a pair's connections are made side by side.
	Dialer func(ctx context.Context) (net.Conn, error)

	// Name is the name that the other host's certificate must be valid for. Required with TLS.
	// A host that dials with a certificate for another name may be a stranger, and is told
	// nothing: its connection ends before the answer (ErrHello, with io.EOF). The other host
	// says in its log (Warn) and in Info.LastError that it has turned it away, once, until the
	// host that is meant connects again.
	Name string
	PortConfig
}

func (p *Peer) port() PortConfig { return p.PortConfig }

func (p *Peer) dial(ctx context.Context) (net.Conn, error) {
	if p.Dialer != nil {
		return p.Dialer(ctx)
	}
	return dialTCP(ctx, p.Dial)
}

// checkDial returns an error in words if Dial is no address that can be dialled. It is nil where
// Dial is not used.
func (p *Peer) checkDial() error {
	if p.Dial == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(p.Dial)
	switch {
	case err != nil:
		return fmt.Errorf("protect: Peer.Dial must be a host and a port, as in host:7777: %w", err)
	case port == "" || port == "0":
		return fmt.Errorf("protect: Peer.Dial, %q, has no port: it must be a host and a port, as in host:7777", p.Dial)
	}
	return nil
}

// A Fencer makes sure that a host no longer acts for the guest: it cuts its power,
// its storage, its network port. It is called with this host's grant, before the
// guest runs, and again after an error, until it succeeds, the job ends, or an operator says by
// Fenced that it need not. A job sets no time limit for a call. A call that does not return when
// its context ends delays only the next call and the end of Run.
type Fencer interface {
	Fence(ctx context.Context, generation uint64) error
}

// Config is one guest on one host. Both hosts have the same, but for Host, Start,
// Held and Peer. Required: Name, Host, Guest and Peer.
type Config struct {
	// Both names are told to operators, and have no character that cannot be printed.
	Name string // of the guest, the same on both hosts
	Host string // the name of this host; the other one has another

	Guest   Guest
	Network []Network // nil: this job does not hold the guest's output
	Disks   []*Disk   // nil: it has none

	Peer Peer

	// Arbiter decides who has the guest. Nil: an operator does, by Failover or
	// Fenced on one of the hosts: a pair that has lost each other stands still
	// until then. A question that does not return when its context ends, as of storage
	// whose server is gone, keeps nobody waiting but the next question and the end of Run. What it
	// grants then is given back, if this host does not use it.
	Arbiter failover.Arbiter
	// ArbiterKind says in a few words what Arbiter is, or with what it decides. The other host is
	// told, and says the same of its own: where they differ both hosts warn, in LastError and the
	// log, since both may go on when they are parted. "": "an operator" where Arbiter is nil, and
	// else "an arbiter".
	ArbiterKind string
	// Fencer, if set, is called before a secondary goes on.
	Fencer Fencer

	// Start says that this host may start the guest by itself: a first start, or one from
	// the checkpoint that the disks of a secondary have. The arbiter is asked for the
	// generation after Held; if it refuses, since there is a newer copy elsewhere, this
	// host becomes a secondary.
	//
	// Without Start a host waits for a primary, but for one whose disks are the
	// guest's own; see the package comment on cold starts.
	Start bool
	// Held is the generation of the copy that this host has, for a host that keeps
	// account of it by itself. 0: what its disks say, and where they do not know,
	// it has none and the guest begins its life. A guest that Restore has read is of
	// the generation that it returns, and the disks must be those with which it was
	// saved: disks that know that they are of another generation start nothing.
	Held uint64
	// Saved is a guest of a file whose memory is still there: with Start, in place of Held.
	// Guest is the one that OpenSaved was called with. The guest runs before its memory has
	// been read; until it has, it is neither protected nor saved, and this host follows
	// nobody. Run closes it; where New fails the caller does, or calls New with it again.
	Saved *Saved

	// Events gets what happens. An event is published on the goroutine that carries out what it
	// tells of, so a subscriber that calls a verb which waits for the end of a session (Pause,
	// Cancel, Complete, Switchover, Migrate, Save) does so on another goroutine; so does a method
	// of Guest or Network. A subscriber that does not return stops the checkpoints, and the guest's
	// output waits for as long, while the state stays as it is: see event.Buffered. Nil: nobody listens.
	Events *event.Bus
	// Logger is told of each change of state (Info); of the events of the sessions and, with
	// Events, of the disks, at their event.Level, but for a DISK_BROKEN of a primary (Info), which
	// ends the session, and the end of the session is told; of heartbeats and connections of disks
	// that come, go or are lost (Debug); of a silence of the other host that is the fault of this
	// process, which did not run for so long (Warn); and, once each, of what keeps the guest
	// unprotected or the arbiter from answering (Warn; Info where it is only that the other host is
	// not reached). No record calls it a loss when a session has been ended on purpose, on either
	// host. Error and Warn are what an operator must see to, Info is what an operator wants to
	// know, Debug is each step. All records have guest, side, generation and checkpoint where there
	// are any. A Handler that blocks, as one does whose pipe is full, is like such a subscriber. Nil:
	// nothing is logged.
	Logger *slog.Logger

	// Machine is the machine type, which must be the same on both sides.
	Machine string
	// Offer describes what else of this host must fit the other, in bytes that only
	// the hosts understand: CPU features, say. Each side gives the Offer of the other
	// to its Judge, whose error refuses the pair. Nil: everything fits. MatchCPU of a
	// kvm.VM returns both.
	Offer []byte
	Judge func(offer []byte) error

	// The times; the package comment has the table. Zero: the default.
	CheckpointDelay time.Duration
	Beat, Lost      time.Duration
	Term            time.Duration
	PeerTimeout     time.Duration
	// MinInterval is the least time between two checkpoints of which the second was
	// asked for; see colo.PrimaryConfig. It must be less than CheckpointTimeout.
	MinInterval time.Duration
	// CheckpointTimeout bounds the age of a checkpoint. The guest's output is
	// held meanwhile, so it is also how long a slow secondary can hold that up.
	// After it the primary gives its secondary up, in good order, and seeks it
	// again.
	CheckpointTimeout time.Duration

	// Channels are connections of their own for the memory of checkpoints. Zero: there
	// are none.
	Channels Channels

	// LateResume keeps a primary's guest standing until its checkpoint is complete;
	// see colo.PrimaryConfig.
	LateResume bool

	// NoMemoryCopy halves the memory that this host takes while it follows. To roll its guest back
	// to the last checkpoint a secondary keeps a copy of the primary's memory, as much
	// again as the guest has. With NoMemoryCopy it holds the pages of the last checkpoint
	// and of the one under way, and its primary sends again, with each checkpoint, what
	// the guest here has written since the last: the two guests write much the same
	// pages, so most of these come anyway. What it costs is a commit that takes a little
	// longer; see ram.CacheConfig.StagedOnly.
	//
	// After a short loss of the link it is sent only what it lacks, which it holds besides
	// the guest's memory until the first commit. If that is more than an eighth of the
	// memory, or than MaxStaged, all of the memory is sent instead, which takes the place of
	// what the guest here has and needs no more room.
	//
	// Each host chooses for itself. NoMemoryCopy needs Linux with pages of 4 KiB:
	// elsewhere the error of New wraps errors.ErrUnsupported. A primary that cannot send
	// again (of an older version of this package) is refused in words, since a copy
	// might not fit here.
	NoMemoryCopy bool
	// MaxStaged bounds, in bytes, what a host with NoMemoryCopy holds besides the guest's
	// memory. A checkpoint that has more ends the session (ram.ErrStagedFull, in
	// Info.LastError): the guest runs on at the primary, which seeks its secondary again,
	// and CheckpointDelay should be shorter. 0: no bound but the guest's memory.
	MaxStaged uint64

	// Session has settings of each session that are seldom changed, and hooks
	// into it.
	Session SessionConfig
}

// The defaults of Config's times.
const (
	DefaultCheckpointDelay = 100 * time.Millisecond
	DefaultBeat            = 200 * time.Millisecond
	DefaultLost            = time.Second
)

// maxDisks bounds the disks of a guest: each has a connection of its own.
const maxDisks = 64

// negative returns the name and the value of a time that is negative, or "".
func (c *Config) negative() string {
	for _, t := range []struct {
		name string
		d    time.Duration
	}{
		{"CheckpointDelay", c.CheckpointDelay}, {"Beat", c.Beat}, {"Lost", c.Lost}, {"Term", c.Term}, {"PeerTimeout", c.PeerTimeout},
		{"CheckpointTimeout", c.CheckpointTimeout}, {"MinInterval", c.MinInterval},
	} {
		if t.d < 0 {
			return fmt.Sprintf("%s, %v,", t.name, t.d)
		}
	}
	return ""
}

// check fills in the defaults and refuses what cannot work.
func (c *Config) check() error {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.CheckpointDelay, DefaultCheckpointDelay)
	def(&c.Beat, DefaultBeat)
	def(&c.Lost, DefaultLost)
	def(&c.Term, failover.DefaultTerm)
	def(&c.PeerTimeout, max(colo.DefaultPeerTimeout, 3*c.Lost))
	def(&c.CheckpointTimeout, colo.DefaultCheckpointTimeout)
	def(&c.MinInterval, colo.DefaultMinInterval)
	p := &c.Peer
	switch {
	case c.Name == "" || len(c.Name) > failover.MaxName:
		return fmt.Errorf("protect: the guest's name has 1 to %d bytes", failover.MaxName)
	case c.Host == "" || len(c.Host) > failover.MaxName:
		return fmt.Errorf("protect: the host's name has 1 to %d bytes", failover.MaxName)
	case !plain.Is(c.Name):
		return fmt.Errorf("protect: the guest's name, %q, has a character that cannot be printed", c.Name)
	case !plain.Is(c.Host):
		return fmt.Errorf("protect: the host's name, %q, has a character that cannot be printed", c.Host)
	case len(c.ArbiterKind) > failover.MaxName, !plain.Is(c.ArbiterKind):
		return fmt.Errorf("protect: ArbiterKind has at most %d bytes, and no character that cannot be printed", failover.MaxName)
	case len(c.Machine) > failover.MaxName:
		return fmt.Errorf("protect: the machine type has at most %d bytes", failover.MaxName)
	case c.Guest == nil:
		return errors.New("protect: Config needs a Guest")
	case len(c.Offer) > maxHello/2:
		return fmt.Errorf("protect: Offer has at most %d bytes", maxHello/2)
	case p.Dial == "" && p.Dialer == nil, p.Dial != "" && p.Dialer != nil:
		return errors.New("protect: Peer needs one of Dial and Dialer, and not both")
	case p.Listen == "" && p.Port == nil, p.Listen != "" && p.Port != nil:
		return errors.New("protect: Peer needs one of Listen and Port, and not both")
	case p.TLS != nil && p.Name == "":
		return errors.New("protect: Peer needs the Name that the other host's certificate is for")
	case c.Held > 0 && !c.Start:
		return errors.New("protect: Held means nothing without Start")
	case c.Saved != nil && !c.Start:
		return errors.New("protect: Saved means nothing without Start")
	case c.Saved != nil && c.Held > 0:
		return errors.New("protect: Saved says itself what is Held")
	case c.negative() != "":
		return fmt.Errorf("protect: %s is negative", c.negative())
	case c.Lost < 2*c.Beat:
		return fmt.Errorf("protect: a peer that is lost after %v must beat more often than every %v", c.Lost, c.Beat)
	case c.PeerTimeout <= c.Lost:
		return fmt.Errorf("protect: PeerTimeout, %v, must be longer than Lost, %v, which notices a dead peer", c.PeerTimeout, c.Lost)
	case c.MinInterval >= c.CheckpointTimeout:
		return fmt.Errorf("protect: MinInterval, %v, must be shorter than CheckpointTimeout, %v", c.MinInterval, c.CheckpointTimeout)
	case c.Term < failover.MinTerm:
		return fmt.Errorf("protect: a term of %v is too short, the least is %v", c.Term, failover.MinTerm)
	}
	if p.Listen != "" {
		if _, _, err := net.SplitHostPort(p.Listen); err != nil {
			return fmt.Errorf("protect: Peer.Listen must be a host and a port, or a port alone, as in :7777: %w", err)
		}
	}
	if err := p.checkDial(); err != nil {
		return err
	}
	if err := c.Channels.check(); err != nil {
		return err
	}
	if err := c.Session.check(c.CheckpointTimeout); err != nil {
		return err
	}
	blocks := c.Guest.Blocks()
	if err := ram.CheckBlocks(blocks); err != nil {
		return fmt.Errorf("protect: %w", err)
	}
	if len(blocks) > maxList {
		return fmt.Errorf("protect: %d blocks of memory, at most %d", len(blocks), maxList)
	}
	if err := c.checkMemory(); err != nil {
		return err
	}
	names, numbers := map[string]bool{}, map[uint32]bool{}
	for i, d := range c.Disks {
		switch {
		case d == nil:
			return fmt.Errorf("protect: Disk %d is nil", i)
		case names[d.cfg.Name]:
			return fmt.Errorf("protect: two disks are called %q", d.cfg.Name)
		}
		names[d.cfg.Name] = true
	}
	if len(c.Disks) > maxDisks {
		return fmt.Errorf("protect: %d disks, at most %d", len(c.Disks), maxDisks)
	}
	for i, n := range c.Network {
		if n == nil {
			return fmt.Errorf("protect: Network %d is nil", i)
		}
		if n, ok := n.(interface{ number() uint32 }); ok {
			if numbers[n.number()] {
				return fmt.Errorf("protect: two NICs have the Instance %d", n.number())
			}
			numbers[n.number()] = true
		}
		s, ok := n.(Sided)
		if !ok {
			continue
		}
		name, terms := s.Link()
		if name == "" || len(name) > maxDiskName || len(terms) > failover.MaxName {
			return fmt.Errorf("protect: Network %d: its name has 1 to %d bytes, its terms at most %d", i, maxDiskName, failover.MaxName)
		}
		if names[chNIC+name] {
			return fmt.Errorf("protect: two networks are called %q", name)
		}
		names[chNIC+name] = true
	}
	if len(c.Network) > maxNetworks {
		return fmt.Errorf("protect: %d networks, at most %d", len(c.Network), maxNetworks)
	}
	return p.check()
}
