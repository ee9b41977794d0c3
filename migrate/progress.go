package migrate

import (
	"sync"
	"time"

	"github.com/gocolo/lockstep/vmstate/ram"
)

// Status says where a migration is, in QAPI's words (MigrationStatus).
type Status string

// The statuses of a migration, in the order in which they come. Only postcopy has the ones
// of postcopy, and each connection that breaks there begins with PostcopyPaused again.
const (
	StatusSetup           Status = "setup"            // nothing of the guest has been sent
	StatusActive          Status = "active"           // memory goes over while the guest runs at the source
	StatusDevice          Status = "device"           // the guest stands still and is handed over
	StatusPostcopy        Status = "postcopy-active"  // it runs at the destination, and memory follows
	StatusPostcopyPaused  Status = "postcopy-paused"  // there is no connection
	StatusPostcopyRecover Status = "postcopy-recover" // each side says what it has, on another one
	StatusCompleted       Status = "completed"        // the destination has all of the guest
	StatusFailed          Status = "failed"           // Run has returned an error
)

// Progress says how far a migration has come.
type Progress struct {
	Status Status
	// Passes is how many passes over memory have ended, of a source.
	Passes int
	// Remaining is how much memory is left, in bytes. Of a source it is what is known to
	// be written and was not sent; it grows when the dirty log is read. Of a destination
	// whose guest runs it is what has not come; before that it is 0.
	Remaining uint64
	// Sent is how many bytes a source has sent, over all connections.
	Sent uint64
	// Elapsed is how long Run has been running, or ran.
	Elapsed time.Duration
	// Recovered is how many connections came after the first.
	Recovered int
}

// A course is how far a Run has come: Run notes it here, and Progress of the
// Source or the Destination reads it, on any goroutine.
type course struct {
	mu    sync.Mutex
	now   Progress
	began time.Time // zero: not yet
	ended bool
	gone  uint64 // bytes that were sent over earlier connections
}

// begin notes that a Run begins, and with what; it returns false, and notes nothing, if one has begun before.
func (c *course) begin(s Status) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.began.IsZero() {
		return false
	}
	c.began, c.now.Status = time.Now(), s
	return true
}

// at notes what the Run is doing.
func (c *course) at(s Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Status = s
}

// moved notes how much is left, and how much this connection and the channels have sent.
func (c *course) moved(passes int, left uint64, sent int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Passes, c.now.Remaining, c.now.Sent = passes, left, c.gone+uint64(sent)
}

// again notes that another connection is used.
func (c *course) again() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Status, c.now.Recovered, c.gone = StatusPostcopyRecover, c.now.Recovered+1, c.now.Sent
}

// end notes how Run ends.
func (c *course) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now.Status = StatusCompleted
	if err != nil {
		c.now.Status = StatusFailed
	}
	c.now.Elapsed, c.ended = time.Since(c.began), true
}

func (c *course) progress() Progress {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.now
	if p.Status == "" {
		p.Status = StatusSetup
	}
	if !c.ended && !c.began.IsZero() {
		p.Elapsed = time.Since(c.began)
	}
	return p
}

// Progress says how far Run has come. It may be called from any goroutine, at any time.
func (s *Source) Progress() Progress { return s.course.progress() }

// Progress says how far Run has come. It may be called from any goroutine, at any time.
func (d *Destination) Progress() Progress {
	p := d.course.progress()
	switch p.Status {
	case StatusPostcopy, StatusPostcopyPaused, StatusPostcopyRecover:
		p.Remaining = uint64(d.cfg.Memory.Missing()) * ram.PageSize
	}
	return p
}
