package device

import (
	"context"
	"io"
	"log/slog"

	"github.com/gocolo/lockstep/vmstate"
)

// RNG is a virtio entropy device: what a driver asks of it is filled with random bytes.
// (Virtio 1.1, section 5.4.) It serves one request at a time, on the goroutine that runs
// Work.
type RNG struct {
	virtio
	source io.Reader
	buf    []byte

	// Of the goroutine that runs Work:
	wants  int // bytes that the next request is to have
	has    int // bytes of buf that were read, for whichever request is next
	failed bool
}

// rngChunk is how much a request gets at most; a driver takes what it is given.
const rngChunk = 4096

// NewRNG returns an entropy device that reads from source. log may be nil.
func NewRNG(source io.Reader, mem *Memory, line Line, log *slog.Logger) *RNG {
	r := &RNG{source: source, buf: make([]byte, rngChunk)}
	r.init(1, 0, nil, mem, line, log)
	r.notify = func(int) { r.work.kick() }
	return r
}

// Work serves requests until ctx ends, and returns when none is being served.
func (r *RNG) Work(ctx context.Context, gate *Gate) { r.work.run(ctx, gate, r.serve, r.finish) }

// Kick makes Work look for requests, after Apply or a time in which it did not run.
func (r *RNG) Kick() { r.work.kick() }

// serve serves one request with what was read for it, or says how much is to be read. If the source
// fails, the request stays in the ring until the driver, or Kick, makes the device look again: after an
// empty answer the guest would ask again, for ever.
func (r *RNG) serve() (more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.peek(0)
	if !ok || r.failed {
		r.failed = false
		return false
	}
	n := int(min(size(c.in), rngChunk))
	if r.has == 0 && n > 0 {
		r.wants = n
		return true
	}
	p := r.buf[:min(n, r.has)]
	r.has = 0 // what is left of it may not be given to anybody else
	r.queues[0].pop()
	r.mem.scatter(p, c.in, 0)
	r.queues[0].push(c.head, uint32(len(p)))
	r.interrupt(0)
	return true
}

// finish reads from the source what serve wants, outside the gate: the source may take long, and neither a
// pause nor a reset is to wait for it.
func (r *RNG) finish(context.Context, *Gate) {
	n := r.wants
	if n == 0 {
		return
	}
	r.wants = 0
	if _, err := io.ReadFull(r.source, r.buf[:n]); err != nil {
		r.faults.log(r.log, slog.LevelError, "there is no randomness for the guest", "err", err)
		r.failed = true
		return
	}
	r.has = n
}

// VMState implements vmstate.Device. A paused device serves no request, so there is
// nothing but its registers and queue.
func (r *RNG) VMState(f *vmstate.Fields) { r.fields(f, 0) }
