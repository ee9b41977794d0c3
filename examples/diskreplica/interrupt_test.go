package main

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

// silent is a disk of zeroes that does not answer a read, once hang was called.
type silent struct {
	mu     sync.Mutex
	hangs  bool
	asked  chan struct{} // closed by the first read that is not answered
	answer chan struct{} // closed when all are
}

func newSilent() *silent {
	return &silent{asked: make(chan struct{}), answer: make(chan struct{})}
}

func (d *silent) hang() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hangs = true
}

func (d *silent) ReadAt(p []byte, _ int64) (int, error) {
	clear(p)
	d.mu.Lock()
	hangs := d.hangs
	if hangs {
		select {
		case <-d.asked:
		default:
			close(d.asked)
		}
	}
	d.mu.Unlock()
	if hangs {
		<-d.answer
	}
	return len(p), nil
}

func (d *silent) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (d *silent) Size() int64                            { return 1 << 20 }
func (d *silent) Sync() error                            { return nil }

// A primary that waited until it took the secondary for lost would end with that as its error.
func TestAnInterruptIsNotKeptWaitingByASecondaryThatIsSilent(t *testing.T) {
	for _, phase := range []string{"synchronising", "verifying"} {
		t.Run(phase, func(t *testing.T) {
			dir := socket.Dir(t)
			path := func(name string) string { return filepath.Join(dir, name) }
			d := newSilent()
			s := startSecondary(t, path("b"), d, replication.SecondaryConfig{})
			defer s.kill()
			defer close(d.answer)
			if phase == "synchronising" {
				d.hang()
			}
			p := start(t, "primary", "-image", path("a.img"), "-size", "1M", "-secondary", path("b"))
			if phase == "verifying" {
				p.expect("replication runs, epoch 0\n")
				d.hang()
				p.say("verify")
			}
			<-d.asked
			p.cancel()
			err := <-p.done
			p.done = nil
			if !errors.Is(err, context.Canceled) {
				t.Errorf("it ends with %v", err)
			}
			if out := p.out.String(); phase == "verifying" && out != "error: context canceled\n" {
				t.Errorf("it says %q", out)
			}
		})
	}
}
