package protect

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// A secondary has room for what either guest writes until a checkpoint. When half of
// it is used a checkpoint is made, long before its time.
func TestAnOverlayThatFillsAsksForACheckpoint(t *testing.T) {
	t.Parallel()
	for _, writer := range []string{"a", "b"} {
		t.Run("written by "+writer, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, false)
				s.overlay = diskSize / 4
				slow := func(c *Config) { c.CheckpointDelay = time.Hour }
				b := s.start("b", false, slow)
				a := s.start("a", true, slow)
				a.is(Protected)
				b.is(Following)
				n := b.job.Query().Stats.Checkpoints
				content := make([]byte, s.overlay*3/4)
				rand.NewChaCha8([32]byte{2}).Read(content)
				if _, err := s.disk[writer].WriteAt(content, 0); err != nil {
					t.Fatal(err)
				}
				s.until(func() bool { return b.job.Query().Stats.Checkpoints > n })
				b.halt()
				a.halt()
			})
		})
	}
}
