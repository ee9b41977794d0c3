package protect

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"sync"
	"time"

	"hash"
)

// pace keeps a host's process standing where it is stopped, and slow where it is
// slow. Everything that a host does outside itself passes here: it sends, it hears,
// it asks whether it may send, its guest writes. (Its timers go on in the meantime,
// as they all ring at once in a process that goes on.)
func (h *host) pace() {
	if h == nil {
		return
	}
	time.Sleep(time.Duration(h.lag.Load()))
	for {
		h.mu.Lock()
		still := h.still
		h.mu.Unlock()
		if still == nil {
			return
		}
		<-still
	}
}

// suspend stops the host's process, as SIGSTOP does, and resume continues it.
func (h *host) suspend() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.still == nil {
		h.still = make(chan struct{})
	}
}

func (h *host) resume() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.still != nil {
		close(h.still)
		h.still = nil
	}
}

// lives reports whether the host has not been killed.
func (h *host) lives() bool { return h == nil || !h.killed.Load() }

// paced is the NIC of a host: a process that is stopped asks its gate when it goes on.
type paced struct {
	*NIC
	h *host
}

func (p paced) Run(ctx context.Context, h NetworkHost) error {
	h.Gate = pacedGate{h.Gate, p.h}
	return p.NIC.Run(ctx, h)
}

// pacedProxy is paced for a host whose guest's output is compared.
type pacedProxy struct {
	*Proxy
	h *host
}

func (p pacedProxy) Run(ctx context.Context, h NetworkHost) error {
	h.Gate = pacedGate{h.Gate, p.h}
	return p.Proxy.Run(ctx, h)
}

type pacedGate struct {
	Gate
	h *host
}

func (g pacedGate) Open() bool {
	g.h.pace()
	open := g.Gate.Open()
	if open && g.h != nil {
		g.h.asked.Store(time.Now().UnixNano())
	}
	return open
}

// mayEmit reports whether the gate is open, or was when the frame that leaves asked it
// at this very instant of the bubble's clock: it can shut between the two.
func (h *host) mayEmit() bool {
	return h.job.Gate().Open() || h.asked.Load() == time.Now().UnixNano()
}

// A trace records what happened in a world, in order: as a digest, and as lines if somebody
// wants to read them.
type trace struct {
	began time.Time
	mu    sync.Mutex
	sum   hash.Hash64
	n     int
	lines io.Writer // nil: nobody
}

func newTrace(lines io.Writer) *trace { return &trace{sum: fnv.New64a(), lines: lines} }

func (t *trace) add(who, what string, n int) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.n++
	line := fmt.Sprintf("%d %s %s %d\n", time.Since(t.began), who, what, n)
	t.sum.Write([]byte(line))
	if t.lines != nil {
		io.WriteString(t.lines, line)
	}
}

func (t *trace) digest() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fmt.Sprintf("%016x of %d events", t.sum.Sum64(), t.n)
}

func (h *host) trace(what string, n int) {
	if h == nil {
		return
	}
	if h.w.counts != nil {
		h.w.counts.add(what, n)
	}
	if h.w.record != nil {
		h.w.record.add(h.name, what, n)
	}
}
