package failover

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Status is how far a failover has come. (QAPI enum FailoverStatus, and Torn.)
type Status uint8

// The statuses, in QAPI's order.
const (
	None      Status = iota // no failover was requested
	Require                 // requested, not begun
	Active                  // this side is taking over
	Completed               // this side has taken over
	Relaunch                // postponed to the end of the load in progress
	Torn                    // a load failed half way: this guest must not run again
)

var statusNames = [...]string{"none", "require", "active", "completed", "relaunch", "torn"}

// String returns the QAPI word, or "torn".
func (s Status) String() string {
	if int(s) < len(statusNames) {
		return statusNames[s]
	}
	return fmt.Sprintf("Status(%d)", uint8(s))
}

// ErrInProgress says that a failover was requested before.
var ErrInProgress = errors.New("failover: one is in progress")

// ErrTorn says that the guest's last load failed half way, so that its state
// is a mixture of two checkpoints.
var ErrTorn = errors.New("failover: the guest is torn: its last load failed half way")

// A StatusError reports a step that the present status does not allow. It
// matches [ErrTorn] if that is why, and otherwise [ErrInProgress] if the step
// comes too late because a failover was requested.
type StatusError struct {
	Step string // "request", "begin", "complete", "withdraw" or "reset"
	Have Status
	Want Status // where the step could have been made
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("failover: %s: status is %s, not %s", e.Step, e.Have, e.Want)
}

// Is reports whether target is the sentinel that the error stands for.
func (e *StatusError) Is(target error) bool {
	switch target {
	case ErrTorn:
		return e.Have == Torn
	case ErrInProgress:
		return e.Have != Torn && e.Want == None
	}
	return false
}

// A Machine holds the failover status of one guest. The zero Machine is ready,
// in None. Its methods may be called from any goroutine.
type Machine struct {
	// OnChange, if set, is called with each new status, in order, on the
	// goroutine whose call made the change and before that call returns. It
	// may call Status, and no other method: the machine is locked. It is set
	// before the machine is used.
	OnChange func(Status)

	mu      sync.Mutex
	loading bool          // guarded by mu: Begin and StartLoad must agree on it
	status  atomic.Uint32 // written with mu held
}

// Status returns the present status. It never blocks.
func (m *Machine) Status() Status { return Status(m.status.Load()) }

// Request asks for a failover: None becomes Require. In any other status it is
// a [*StatusError] that matches [ErrInProgress] or [ErrTorn].
func (m *Machine) Request() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.move("request", None, Require)
}

// Begin starts the failover that was requested: Require becomes Active, or, if
// a load is in progress, Relaunch. It returns the new status. When that is
// Active the caller takes over; when it is Relaunch there is nothing to do,
// [Machine.EndLoad] will say so. In any other status it is a [*StatusError].
func (m *Machine) Begin() (Status, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := Active
	if m.loading {
		next = Relaunch
	}
	err := m.move("begin", Require, next)
	return m.Status(), err
}

// StartLoad says that the guest's state is about to be replaced. It returns
// false, and no load may begin, if a failover came first, if the guest is torn
// or if a load is in progress already.
func (m *Machine) StartLoad() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.loading || m.Status() != None {
		return false
	}
	m.loading = true
	return true
}

// EndLoad says that the load is over. An error means that it failed half way:
// the status becomes Torn, whatever it was. Otherwise, if a failover was
// postponed, it walks from Relaunch over None and Require to Active, as one
// step, and returns true: the caller takes over. Without a load in progress it
// does nothing.
func (m *Machine) EndLoad(err error) (relaunched bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.loading {
		return false
	}
	m.loading = false
	switch {
	case err != nil:
		m.set(Torn)
	case m.Status() == Relaunch:
		m.set(None)
		m.set(Require)
		m.set(Active)
		return true
	}
	return false
}

// Complete says that this side has taken over: Active becomes Completed. In
// any other status it is a [*StatusError].
func (m *Machine) Complete() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.move("complete", Active, Completed)
}

// Withdraw says that the failover which was begun is not carried out after all,
// since the arbiter gave the guest to the other side: Active becomes None. In
// any other status it is a [*StatusError].
func (m *Machine) Withdraw() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.move("withdraw", Active, None)
}

// Reset prepares the machine for the next session of the same guest: Completed
// becomes None, and None stays. While a failover is on its way or a load in
// progress it is a [*StatusError] that matches [ErrInProgress]. Torn is final:
// a guest that is made anew has a new Machine.
func (m *Machine) Reset() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	have := m.Status()
	switch {
	case m.loading, have != None && have != Completed:
		return &StatusError{Step: "reset", Have: have, Want: None}
	case have == Completed:
		m.set(None)
	}
	return nil
}

func (m *Machine) move(step string, from, to Status) error {
	if have := m.Status(); have != from {
		return &StatusError{Step: step, Have: have, Want: from}
	}
	m.set(to)
	return nil
}

func (m *Machine) set(s Status) {
	m.status.Store(uint32(s))
	if m.OnChange != nil {
		m.OnChange(s)
	}
}
