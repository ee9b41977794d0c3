package main

import (
	"encoding/json"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/cli"
)

// A printer shows what happens: lines for people, or JSON lines, which are
// objects as QMP has them: events, and for the commands "return" or "error".
// On a terminal the progress of a synchronisation is one line that changes. It
// may be used from any goroutine.
type printer struct {
	out      io.Writer
	json     bool
	terminal bool // people, and the cursor can go back

	mu   sync.Mutex
	line cli.StatusLine
}

// printf prints a line for people.
func (p *printer) printf(format string, args ...any) {
	if p.json {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line.Clear(p.out)
	fmt.Fprintf(p.out, format+"\n", args...)
}

// progress prints a line for people that the next one replaces.
func (p *printer) progress(line string) {
	if p.json {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line.Show(p.out, p.terminal, line)
}

// object prints a JSON line.
func (p *printer) object(v any) {
	if !p.json {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	json.NewEncoder(p.out).Encode(v)
}

// returned answers a command, in JSON and for people.
func (p *printer) returned(v any, format string, args ...any) {
	p.object(map[string]any{"return": v})
	p.printf(format, args...)
}

// failed says that a command has failed.
func (p *printer) failed(err error) {
	p.object(map[string]any{"error": map[string]string{"class": "GenericError", "desc": err.Error()}})
	p.printf("error: %v", err)
}

const mib = 1 << 20

// kib returns so many bytes in KiB, and no 0 for what is not nothing.
func kib(bytes int64) int64 { return (bytes + 1<<10 - 1) >> 10 }

// event prints an event; it is what the bus calls.
func (p *printer) event(r event.Record) {
	p.object(r)
	switch e := r.Event.(type) {
	case event.DiskSyncProgress:
		line := fmt.Sprintf("synchronising: %d of %d MiB, %d MiB/s", (e.Total-e.Remaining)/mib, e.Total/mib, e.Rate/mib)
		if e.Same > 0 {
			line += fmt.Sprintf(", %d MiB were the same", e.Same/mib)
		}
		if left := e.Left().Round(time.Second); left > 0 {
			line += fmt.Sprintf(", %v left", left)
		}
		if e.Phase == event.SyncFlush {
			line += ", making it stable"
		}
		p.progress(line)
	case event.DiskSynchronised:
		p.synchronised("synchronised", e)
	case event.DiskResynchronised:
		p.synchronised("synchronised again", event.DiskSynchronised(e))
	case event.DiskBroken:
		where := ""
		if e.Length > 0 {
			where = fmt.Sprintf(" of %d bytes at %d", e.Length, e.Offset)
		}
		p.printf("broken: %s%s: %s", e.Operation, where, e.Error)
		if e.Mode == event.ModePrimary {
			p.printf("the guest goes on without the secondary; once that is mended, reconnect copies what it has missed")
		} else {
			p.printf("this side stays at its last checkpoint until the primary reconnects, or failover is ordered")
		}
	case event.DiskOverlayHalfFull:
		p.printf("the %s overlay has %d of at most %d KiB: a checkpoint is due", e.Overlay, kib(e.Bytes), kib(e.Bound))
	case event.DiskVerified:
		left := ""
		if e.Undecided > 0 {
			left = fmt.Sprintf(", %d KiB undecided", kib(e.Undecided))
		}
		p.printf("verified: %d KiB compared, %d KiB differed, %d KiB repaired%s, in %v", kib(e.Compared), kib(e.Different), kib(e.Repaired), left, time.Duration(e.ElapsedNS).Round(time.Millisecond))
	case event.DiskOverlayFull:
		p.printf("the %s overlay is full, of %d KiB: a write waits for a checkpoint", e.Overlay, kib(e.Bound))
	case event.DiskFailed:
		p.printf("the disk cannot be trusted any more: %s: %s", e.Operation, e.Error)
	case event.CheckpointCommit:
		if e.Cause == event.CauseInitial {
			p.printf("replication runs, epoch %d", e.Epoch)
		} else {
			p.printf("checkpoint %d", e.Epoch)
		}
	case event.FailoverDone:
		if e.Mode == event.ModePrimary {
			p.printf("failover: on alone")
		} else {
			p.printf("failover: the disk is that of checkpoint %d and the guest's own writes since", e.Epoch)
		}
	}
}

func (p *printer) synchronised(how string, e event.DiskSynchronised) {
	p.printf("%s: %d KiB copied, %d KiB were the same, in %v", how, kib(e.Copied), kib(e.Same), time.Duration(e.ElapsedNS).Round(time.Millisecond))
}
