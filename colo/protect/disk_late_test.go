package protect

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/gocolo/lockstep/replication"
)

// A device that no pause waits for makes its request when the session of its host is over, and
// the other host has the guest: the copy here stays that of the last checkpoint, and this host
// follows again.
func TestARequestThatComesLateChangesNothingOnAHostThatHasStoppedFollowing(t *testing.T) {
	t.Parallel()
	withDisk(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		time.Sleep(300 * time.Millisecond)
		if err := a.job.Pause(t.Context(), "an upgrade"); err != nil {
			t.Fatal(err)
		}
		b.is(Waiting)
		content := func() []byte {
			b.image.mu.Lock()
			defer b.image.mu.Unlock()
			return bytes.Clone(b.image.b)
		}
		before := content()
		for name, late := range map[string]func() error{
			"write": func() error {
				_, err := b.disk.WriteAt(bytes.Repeat([]byte{0xee}, sectorSize), 0)
				return err
			},
			"zeroes": func() error { return b.disk.WriteZeroes(0, diskSize) },
			"trim":   func() error { return b.disk.Trim(0, diskSize) },
			"flush":  b.disk.Sync,
		} {
			done := make(chan error, 1)
			go func() { done <- late() }()
			select {
			case err := <-done:
				if !errors.Is(err, replication.ErrNotRunning) {
					t.Errorf("%s: %v, want ErrNotRunning", name, err)
				}
			case <-time.After(5 * time.Second):
				t.Fatalf("%s waits for good", name)
			}
		}
		if !bytes.Equal(content(), before) {
			t.Error("the copy has changed")
		}
		if err := a.job.Resume(); err != nil {
			t.Fatal(err)
		}
		a.is(Protected)
		time.Sleep(300 * time.Millisecond)
		a.kill(false)
		b.is(Alone)
		time.Sleep(300 * time.Millisecond)
		a.bury()
		b.halt()
	})
}
