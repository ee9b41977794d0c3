package protect

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// While its guest runs elsewhere a host that comes back claims nothing.
func TestAHostThatComesBackToALivingGuestFollowsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, false)
		a, b := s.outlived()
		b.is(Protected)
		a.is(Following)
		if n := b.job.Query().Stats.Takeovers; n != 1 {
			t.Errorf("%d takeovers", n)
		}
		a.halt()
		b.halt()
		s.clean()
	})
}

// The secondary's host loses its power, and so does the primary's, which never comes
// back. With a journal the secondary has the disk of its last checkpoint, and is
// started by a person's word; without one it has the disk of no moment, and no word
// starts it.
func TestADeadPairsSecondaryStartsFromItsLastCheckpointIfItHasAJournal(t *testing.T) {
	t.Parallel()
	for _, journal := range []bool{true, false} {
		t.Run(fmt.Sprintf("journal %v", journal), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, journal)
				slow := func(c *Config) {
					c.CheckpointDelay = time.Hour
					c.Lost, c.PeerTimeout = 20*time.Second, time.Minute // nobody is to go on alone meanwhile
				}
				b := s.start("b", false, slow)
				a := s.start("a", true, slow)
				a.is(Protected)
				b.is(Following)
				s.write("a", "before the checkpoint")
				n := a.job.Query().Stats.Checkpoints
				if err := a.job.Checkpoint(); err != nil {
					t.Fatal(err)
				}
				s.until(func() bool { return b.job.Query().Stats.Checkpoints > n })
				s.write("a", "after it")
				s.until(func() bool {
					p, err := os.ReadFile(s.image("b"))
					return err == nil && strings.HasPrefix(string(p), "after it")
				})
				// What is on b's storage now is what a power cut leaves: nobody writes.
				cut := s.snapshot("b")
				s.powerCut(a, b)
				s.dir = cut

				b = s.start("b", true, nil)
				if !journal {
					b.is(Waiting)
					if err := b.job.Query().LastError; !errors.Is(err, errCopy) {
						t.Errorf("%v", err)
					}
					b.halt()
					return
				}
				b.is(Alone)
				if got := s.read("b"); got != "before the checkpoint" {
					t.Errorf("the disk says %q", got)
				}
				b.halt()
			})
		})
	}
}
