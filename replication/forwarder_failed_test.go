package replication

import (
	"context"
	"testing"
)

// abortHook is a Remote whose other side fails, and that calls aborted when it is given up.
type abortHook struct {
	Remote
	aborted func()
}

func (r *abortHook) Abort() { r.aborted() }

// failing is a disk of which an operation fails.
type failing struct {
	Disk
	write, sync error
}

func (d failing) WriteAt(p []byte, off int64) (int, error) {
	if d.write != nil {
		return 0, d.write
	}
	return d.Disk.WriteAt(p, off)
}

func (d failing) Sync() error {
	if d.sync != nil {
		return d.sync
	}
	return d.Disk.Sync()
}

// A request that fails counts as answered only once the Forwarder is broken. Otherwise a Mark
// that waits for the answer could go on in between, and say that all is stable though a flush
// has failed.
func TestWhatFailsIsNotAnsweredBeforeTheForwarderIsBroken(t *testing.T) {
	for _, c := range []struct {
		name string
		disk failing
	}{{"flush", failing{sync: errInjected}}, {"write", failing{write: errInjected}}} {
		c.disk.Disk = newFake(1<<20, 0)
		r := &abortHook{Remote: DiskRemote(c.disk)}
		f := startForwarder(t, r, ForwarderConfig{})
		aborts := 0
		r.aborted = func() {
			aborts++
			f.mu.Lock()
			defer f.mu.Unlock()
			if f.err == nil {
				t.Errorf("%s: given up, and not broken", c.name)
			}
			if len(f.inflight)+f.flushes != 1 {
				t.Errorf("%s: it counts as answered before the Forwarder is broken", c.name)
			}
		}
		f.WriteAt(make([]byte, 512), 0)
		wantErr(t, c.name, f.Mark(context.Background(), 1), errInjected)
		if aborts != 1 {
			t.Errorf("%s: given up %d times", c.name, aborts)
		}
	}
}
