package control

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// A Job is the job that a monitor steers: a [protect.Job].
type Job interface {
	Query() protect.Info
	Pause(ctx context.Context, reason string) error
	Resume() error
	Complete(ctx context.Context) error
	Checkpoint() error
	Failover() error
	Fenced() error
	Switchover(ctx context.Context) error
}

// Config has all that a monitor or a page needs besides the job.
type Config struct {
	// Events is the job's bus: clients see its events. Nil: there are none, and
	// query-colo-status forgets a session when it has ended.
	Events *event.Bus

	// Guest is the VM that stop pauses and cont resumes. They call it from any
	// goroutine, at the same time as the job does, which colo.VM allows. Nil: stop
	// and cont are refused.
	Guest colo.VM

	// CheckpointDelay is the delay that the job was given, for query-migrate-parameters.
	// Zero: the default of package protect.
	CheckpointDelay time.Duration

	// Quit ends the host; nil: there is no command quit. It must not wait for
	// Serve to return.
	Quit func()

	// Save ends the guest here with its state in a new file of that name, for
	// protection-save; nil: there is no such command. See protect.Job.Save. Whoever
	// can connect names the file.
	Save func(ctx context.Context, filename string) error

	// Register adds commands of the host's own to the monitor; see qmp.Register. It
	// is called once, by NewMonitor, when the monitor has all of its own. Nil: there
	// are no others.
	Register func(*qmp.Commands)

	// Listening is told by Handles.Run where a handle is served, before the job
	// begins: HandleMonitor at an address as qmp.Listen takes it, HandlePage at a URL.
	// A port that was 0 is the one that was found. Nil: nobody is told.
	Listening func(handle, address string)

	// Metrics adds further metrics of the host to those of the page that Handles.Run serves,
	// of its networks, say; see watch.Config. Nil: nothing is added.
	Metrics func(*metrics.Set)

	// Logger hears of clients (Debug), and of what they have ordered (Info). Nil:
	// nothing is logged.
	Logger *slog.Logger
}

// A Monitor is the QMP monitor of a job. Call Close when it is no longer needed.
type Monitor struct {
	// Commands are the commands of the monitor; a host may register more.
	Commands qmp.Commands

	job    Job
	cfg    Config
	log    *slog.Logger
	cancel func()

	operator sync.Mutex  // one stop or cont at a time
	leave    atomic.Bool // the guest does not run here any more: see machine.left

	mu        sync.Mutex
	stopped   bool // Stop has paused the guest, and Cont has not resumed it yet
	dismissed bool
	delay     time.Duration    // of checkpoints, as far as it was set here
	last      event.Mode       // of the last session that has ended
	reason    event.ExitReason // why the last session has ended
	broken    error            // of a disk, in the present session
}

// NewMonitor makes a monitor that steers job and answers from what cfg.Events carries, from now
// on until Close.
func NewMonitor(job Job, cfg Config) *Monitor {
	m := &Monitor{job: job, cfg: cfg, log: cfg.Logger, last: event.ModeNone, reason: event.ExitNone, delay: cfg.CheckpointDelay}
	if m.delay == 0 {
		m.delay = protect.DefaultCheckpointDelay
	}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	m.cancel = cfg.Events.SubscribeAll(m.observe)
	c := &m.Commands
	name := job.Query().Guest
	qmp.RegisterName(c, name)
	qmp.RegisterMachine(c, (*machine)(m))
	qmp.RegisterCOLO(c, (*session)(m))
	qmp.RegisterReplication(c, (*disks)(m))
	qmp.RegisterJobs(c, m.jobs)
	qmp.RegisterMigration(c, m.migration)
	qmp.RegisterCapabilities(c, capabilities, setCapabilities)
	if d, ok := job.(delayer); ok {
		// leastDelay takes the place of an x-checkpoint-delay of 0, which a QEMU accepts and a job
		// does not.
		const leastDelay = time.Millisecond
		qmp.RegisterParameters(c, m.parameters, func(_ context.Context, p qmp.MigrationParameters) error {
			if p.XCheckpointDelay == nil {
				return nil
			}
			delay := time.Duration(*p.XCheckpointDelay) * time.Millisecond
			err := d.SetDelay(max(delay, leastDelay))
			if err == nil {
				m.mu.Lock()
				m.delay = delay
				m.mu.Unlock()
			}
			return m.ordered("x-checkpoint-delay", err)
		})
	}
	if g, ok := job.(migrator); ok {
		m.verb("protection-migrate", moving, g.Migrate)
	}
	if g, ok := job.(grower); ok {
		qmp.Register(c, "block_resize", func(ctx context.Context, a resizeArguments) (qmp.None, error) {
			return qmp.None{}, m.ordered("block_resize", within(ctx, asking, func(ctx context.Context) error { return a.resize(ctx, g) }))
		})
	}
	if cfg.Save != nil {
		qmp.Register(c, "protection-save", func(ctx context.Context, a saveArguments) (qmp.None, error) {
			return qmp.None{}, m.ordered("protection-save", cfg.Save(context.WithoutCancel(ctx), a.Filename))
		})
	}
	qmp.Register(c, "query-protection", func(context.Context, qmp.None) (protection, error) { return newProtection(job.Query()), nil })
	m.verb("protection-failover", asking, func(context.Context) error { return job.Failover() })
	m.verb("protection-fenced", asking, func(context.Context) error { return job.Fenced() })
	m.verb("protection-complete", asking, job.Complete)
	if cfg.Register != nil {
		cfg.Register(c)
	}
	return m
}

// saveArguments are the arguments of protection-save.
type saveArguments struct {
	Filename string `json:"filename"`
}

// resizeArguments are the arguments of block_resize: the disk, by one of two names, and its new length in bytes.
type resizeArguments struct {
	Device   string `json:"device,omitempty"`
	NodeName string `json:"node-name,omitempty"`
	Size     int64  `json:"size"`
}

var errWhichDisk = errors.New("block_resize takes a device or a node-name, which is that of a disk of the guest")

func (a resizeArguments) resize(ctx context.Context, g grower) error {
	if (a.Device == "") == (a.NodeName == "") {
		return errWhichDisk
	}
	return g.Grow(ctx, a.Device+a.NodeName, a.Size)
}

// grower is a job whose disks can become longer.
type grower interface {
	Grow(ctx context.Context, disk string, size int64) error
}

// delayer is a job whose checkpoint delay can be changed.
type delayer interface{ SetDelay(d time.Duration) error }

// migrator is a job that can be moved to the other host for good.
type migrator interface {
	Migrate(ctx context.Context) error
}

func (m *Monitor) parameters() qmp.MigrationParameters {
	m.mu.Lock()
	defer m.mu.Unlock()
	ms := uint32(m.delay.Milliseconds())
	return qmp.MigrationParameters{XCheckpointDelay: &ms}
}

// canceller is a job whose protection can be ended for good.
type canceller interface {
	Cancel(ctx context.Context) error
}

// How long a command may take that asks the arbiter, and one that moves the guest. A command that is
// not carried out in its time keeps no other one from its turn.
const (
	asking = time.Minute
	moving = 10 * time.Minute
)

// within carries a command out for as long as limit. It is carried out even if the client leaves.
func within(ctx context.Context, limit time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	return do(ctx)
}

// verb registers a command that has no arguments, and no answer but an error.
func (m *Monitor) verb(name string, limit time.Duration, do func(context.Context) error) {
	qmp.Register(&m.Commands, name, func(ctx context.Context, _ qmp.None) (qmp.None, error) {
		return qmp.None{}, m.ordered(name, within(ctx, limit, do))
	})
}

// ordered logs what an operator has ordered, and how it ended.
func (m *Monitor) ordered(what string, err error) error {
	in := m.job.Query()
	args := []any{"order", what, "guest", in.Guest, "side", in.Role.String(), "generation", in.Generation, "checkpoint", checkpoint(in)}
	if err != nil {
		args = append(args, "error", err)
	}
	m.log.Info("ordered by the monitor", args...)
	return err
}

// checkpoint returns the last checkpoint of the present session; 0: there is none.
func checkpoint(in protect.Info) uint64 {
	if in.Session == nil {
		return 0
	}
	return in.Session.Epoch
}

// Server returns a new server of the monitor, which can serve any number of listeners.
func (m *Monitor) Server() *qmp.Server {
	return &qmp.Server{Commands: &m.Commands, Bus: m.cfg.Events, Quit: m.cfg.Quit, Log: m.cfg.Logger}
}

// Close ends the monitor: it unsubscribes from the events, and takes back a stop that no
// cont has. The caller has ended the servers of the monitor before.
func (m *Monitor) Close() error {
	m.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), colo.DefaultPeerTimeout)
	defer cancel()
	m.operator.Lock()
	defer m.operator.Unlock()
	return (*machine)(m).release(ctx)
}

// observe records from an event what query-colo-status and query-xen-replication-status
// answer.
func (m *Monitor) observe(r event.Record) {
	if e, ok := r.Event.(event.JobStatusChange); ok && e.State != "" && gone(m.job.Query().State) {
		(*machine)(m).left()
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch e := r.Event.(type) {
	case event.COLOExit:
		m.last, m.reason = e.Mode, e.Reason
	case event.Migration:
		if e.Status == event.MigrationSetup || e.Status == event.MigrationActive {
			m.broken = nil
		}
	case event.DiskBroken:
		m.broken = errors.New(e.Error)
	case event.DiskFailed:
		m.broken = errors.New(e.Error)
	}
}

func capabilities() []qmp.CapabilityStatus {
	return []qmp.CapabilityStatus{{Capability: qmp.CapabilityCOLO, State: true}}
}

func setCapabilities(_ context.Context, all []qmp.CapabilityStatus) error {
	for _, s := range all {
		if !s.State {
			return errors.New("a protected guest has x-colo; job-pause ends the protection for now")
		}
	}
	return nil
}
