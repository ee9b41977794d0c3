package protect

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// SessionConfig says how the sessions of a job work, of which it has one after the other. The
// zero value is right for most hosts. Each field but the last four applies while this host is a
// primary, and means what the field of the same name in colo.PrimaryConfig, or ram.SaverConfig,
// means.
type SessionConfig struct {
	MaxDowntime   time.Duration // 0: 300 ms; shorter than CheckpointTimeout
	MaxPasses     int           // 0: 30
	ThrottleMax   int           // in percent; 0: 99
	ThrottleShare float64       // 0 to 1; 0: the guest is never slowed down between checkpoints
	XBZRLE        int64         // bytes; 0: no differences are sent
	// EarlyShare, 0 to 1, is how much of the link is spent between two checkpoints on what
	// the guest has written since the last; 0: none. A host with NoMemoryCopy takes nothing
	// early from a primary with XBZRLE.
	EarlyShare float64
	// KeepAfter, of either side, is before how many checkpoints a page must have been written for
	// it to stay writable (ram.SaverConfig.KeepAfter, ram.CacheConfig.KeepAfter), where the Guest
	// is a ram.DirtyKeeper; 0: 4; at most 7; below 0: none does.
	KeepAfter int

	// Step is called before each step of a session, on its goroutine, with this host's
	// side, the step's name, which package colo lists, and the number of the checkpoint. It
	// may block: the protocol then stands still, and the other host's patience runs out.
	Step func(side event.Mode, op string, epoch uint64)
	// Trace is told of each message of a session's protocol, on its goroutine; dir is ">"
	// for one that is sent and "<" for one that has come.
	Trace func(side event.Mode, dir string, m colo.Message, value uint64)
	// Conn returns what a session uses in place of its connection, which has said hello
	// already: one that counts, or breaks. What is returned is closed when the session
	// ends, and closes the connection; a qemufile.BuffersWriter gets many pages in one write,
	// as the connection itself does where it is of TCP. Nil: the connection as it is.
	Conn func(side event.Mode, conn net.Conn) net.Conn
}

// check refuses what a session would refuse, which is then too late.
func (c *SessionConfig) check(timeout time.Duration) error {
	downtime := cmp.Or(c.MaxDowntime, colo.DefaultMaxDowntime)
	switch {
	case downtime >= timeout:
		return fmt.Errorf("protect: CheckpointTimeout, %v, must be longer than %v, which the pause of the first synchronisation may take", timeout, downtime)
	case !(c.ThrottleShare >= 0 && c.ThrottleShare <= 1):
		return fmt.Errorf("protect: Session.ThrottleShare is %v, not 0 to 1", c.ThrottleShare)
	case !(c.EarlyShare >= 0 && c.EarlyShare <= 1):
		return fmt.Errorf("protect: Session.EarlyShare is %v, not 0 to 1", c.EarlyShare)
	case c.MaxDowntime < 0, c.MaxPasses < 0, c.XBZRLE < 0, c.ThrottleMax > 99, c.KeepAfter > 7:
		return errors.New("protect: Session has a number that is out of range")
	}
	return nil
}

func (c *SessionConfig) step(side event.Mode) func(string, uint64) {
	if c.Step == nil {
		return nil
	}
	return func(op string, epoch uint64) { c.Step(side, op, epoch) }
}

func (c *SessionConfig) trace(side event.Mode) func(string, colo.Message, uint64) {
	if c.Trace == nil {
		return nil
	}
	return func(dir string, m colo.Message, value uint64) { c.Trace(side, dir, m, value) }
}

// wire returns the connection of a session, counted.
func (c *SessionConfig) wire(side event.Mode, conn net.Conn) *counted {
	if c.Conn != nil {
		if other := c.Conn(side, conn); other != nil {
			conn = other
		}
	}
	return &counted{Conn: conn}
}

func (c *SessionConfig) saver() ram.SaverConfig {
	return ram.SaverConfig{XBZRLE: c.XBZRLE, KeepAfter: c.KeepAfter, Resumable: true}
}

func (c *SessionConfig) primary(p *colo.PrimaryConfig) {
	p.MaxDowntime, p.MaxPasses = c.MaxDowntime, c.MaxPasses
	p.ThrottleMax, p.ThrottleShare, p.EarlyShare = c.ThrottleMax, c.ThrottleShare, c.EarlyShare
	p.Step, p.Trace = c.step(event.ModePrimary), c.trace(event.ModePrimary)
}
