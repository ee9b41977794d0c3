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
func (r *RNG) Work(ctx context.Context, gate *Gate) { r.work.run(ctx, gate, r.step, nil) }

// Kick makes Work look for requests, after Apply or a time in which it did not run.
func (r *RNG) Kick() { r.work.kick() }

// step serves one request. If the source fails, the request stays in the ring until the
// driver, or Kick, makes the device look again: after an empty answer the guest would ask
// again, for ever.
func (r *RNG) step() (more bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c, ok := r.peek(0)
	if !ok {
		return false
	}
	p := r.buf[:min(size(c.in), rngChunk)]
	r.busy++
	r.mu.Unlock()
	_, err := io.ReadFull(r.source, p)
	r.mu.Lock()
	r.release()
	if err != nil {
		r.faults.log(r.log, slog.LevelError, "there is no randomness for the guest", "err", err)
		return false
	}
	r.queues[0].pop()
	r.mem.scatter(p, c.in, 0)
	r.queues[0].push(c.head, uint32(len(p)))
	r.interrupt(0)
	return true
}

// VMState implements vmstate.Device. A paused device serves no request, so there is
// nothing but its registers and queue.
func (r *RNG) VMState(f *vmstate.Fields) { r.fields(f, 0) }
