package cli

import (
	"errors"
	"io"
	"sync"
	"time"
)

const (
	// maxUnread is how many bytes Detached keeps for readers that take none. It is some ten thousand
	// lines.
	maxUnread = 1 << 20
	// lastWait is how long Status waits for a reader that takes nothing.
	lastWait = 5 * time.Second
)

// errUnread means that output was left out, since nobody took what came before it.
var errUnread = errors.New("nobody has read it")

// Detached returns two Outputs, to stdout and stderr, on which no write waits: a terminal that is
// stopped (Ctrl-S), a full pipe to a logger that hangs, or to a pager, holds up neither a guest nor its checkpoints.
// What is written is kept, and written by a goroutine in its order, whichever of the two it is for.
// What would make that more than 1 MiB is left out, whole, as an error of the Output.
//
// Status of either waits until all is written, but not for a reader that has taken nothing for five
// seconds. It is called once, when nothing is written any more, and ends the goroutine, unless
// that waits for a reader then.
func Detached(stdout, stderr io.Writer) (out, errs *Output) {
	q := &backlog{idle: make(chan struct{})}
	q.more.L = &q.mu
	go q.run()
	return &Output{w: stdout, backlog: q}, &Output{w: stderr, backlog: q}
}

// backlog has what is to be written to several Outputs.
type backlog struct {
	idle chan struct{} // closed when run has returned

	mu     sync.Mutex
	more   sync.Cond // there is something in parts, or over is true
	parts  []part
	bytes  int  // of parts, and of what is being written
	writes int  // that have ended
	over   bool // nothing more comes
}

// part is what was given to one Write of an Output.
type part struct {
	to *Output
	b  []byte
}

// put keeps b for an Output, or leaves it out.
func (q *backlog) put(to *Output, b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.over || q.bytes+len(b) > maxUnread {
		return 0, to.keep(errUnread)
	}
	q.bytes += len(b)
	q.parts = append(q.parts, part{to, append([]byte(nil), b...)})
	q.more.Signal()
	return len(b), nil
}

// run writes what is kept, until nothing more comes.
func (q *backlog) run() {
	defer close(q.idle)
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		for len(q.parts) == 0 && !q.over {
			q.more.Wait()
		}
		if len(q.parts) == 0 {
			return
		}
		p := q.parts[0]
		q.parts = q.parts[1:]
		q.mu.Unlock()
		p.to.write(p.b)
		q.mu.Lock()
		q.bytes -= len(p.b)
		q.writes++
	}
}

// drain returns when all is written, or with errUnread when nothing was for lastWait.
func (q *backlog) drain() error {
	q.mu.Lock()
	q.over = true
	q.more.Signal()
	was := q.writes
	q.mu.Unlock()
	for {
		select {
		case <-q.idle:
			return nil
		case <-time.After(lastWait):
		}
		q.mu.Lock()
		n := q.writes
		q.mu.Unlock()
		if n == was {
			return errUnread
		}
		was = n
	}
}
