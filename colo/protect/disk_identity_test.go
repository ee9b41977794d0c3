package protect

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/replication"
)

// Nothing of two equal images is sent, after a short loss only what was written
// since is looked at, and of a copy whose guest was another's, only what differs is
// sent.
func TestOnlyWhatDiffersIsSentToASecondary(t *testing.T) {
	t.Parallel()
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("images that know nothing of themselves %v", plain), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, false)
				s.plain = plain
				content := make([]byte, diskSize)
				rand.NewChaCha8([32]byte{1}).Read(content)
				for _, name := range []string{"a", "b"} {
					if err := os.WriteFile(s.image(name), content, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				b := s.start("b", false, nil)
				a := s.start("a", true, nil)
				a.is(Protected)
				s.write("a", "in step")
				s.f.part("a", "b", false)
				a.is(Alone)
				s.write("a", "alone")
				s.f.join("a", "b")
				a.is(Protected)
				b.is(Following)
				a.kill(false)
				b.is(Alone)
				a.bury()
				s.close("a")
				s.write("b", "of b")
				first := a
				a = s.start("a", false, nil)
				b.is(Protected)

				type sum struct{ copied, same int64 }
				var got []sum
				for _, e := range append(first.copied(), b.copied()...) {
					got = append(got, sum{e.Copied, e.Same})
				}
				const chunk = replication.ChunkSize
				want := []sum{{0, diskSize}, {chunk, 0}, {chunk, diskSize - chunk}}
				if !slices.Equal(got, want) {
					t.Errorf("sent, and found to be the same: %v, not %v", got, want)
				}
				a.halt()
				b.halt()
			})
		})
	}
}

func TestHostsThatWereBothDownStartTheGuestFromTheDisksThatAreItsOwn(t *testing.T) {
	t.Parallel()
	for _, took := range []bool{false, true} {
		t.Run(fmt.Sprintf("after a takeover %v", took), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSite(t, false)
				b := s.start("b", false, nil)
				a := s.start("a", true, nil)
				a.is(Protected)
				b.is(Following)
				s.write("a", "of a")
				if took {
					a.job.Checkpoint()
					a.kill(false)
					b.is(Alone)
					a.bury()
					s.close("a")
					s.write("b", "of b")
					s.powerCut(b)
				} else {
					s.powerCut(a, b)
				}

				a, b = s.start("a", false, nil), s.start("b", false, nil)
				last, old, want := a, b, "of a"
				if took {
					last, old, want = b, a, "of b"
				}
				last.is(Protected)
				old.is(Following)
				if got := s.read(last.name); got != want {
					t.Errorf("the guest was started with a disk that says %q, not %q", got, want)
				}
				s.write(last.name, "of the new life")
				if got := s.read(last.name); got != "of the new life" {
					t.Errorf("it has written to a disk that says %q", got)
				}
				if n := last.job.Query().Stats.Takeovers; n != 0 {
					t.Errorf("%d takeovers", n)
				}
				old.halt()
				last.halt()
			})
		})
	}
}

func TestAnImageOfAnotherGuestIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		stores := map[string]*failovertest.Store{}
		for _, guest := range []string{"one", "another"} {
			s := newSite(t, false)
			stores[guest] = s.store
			s.dir = filepath.Join(dir, guest)
			if err := os.Mkdir(s.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			b := s.start("b", false, nil)
			a := s.start("a", true, nil)
			a.is(Protected)
			s.write("a", "of "+guest)
			n := b.job.Query().Stats.Checkpoints
			s.until(func() bool { return b.job.Query().Stats.Checkpoints > n+1 })
			b.halt()
			a.halt()
			s.close("a")
			s.close("b")
		}
		s := newSite(t, false)
		s.dir, s.store = filepath.Join(dir, "one"), stores["one"]
		for _, suffix := range []string{"", ".lockstep"} {
			from, to := filepath.Join(dir, "another", "b"+suffix), filepath.Join(dir, "one", "b"+suffix)
			if err := os.Rename(from, to); err != nil {
				t.Fatal(err)
			}
		}
		before, err := os.ReadFile(s.image("b"))
		if err != nil {
			t.Fatal(err)
		}
		b := s.start("b", false, nil)
		a := s.start("a", true, nil)
		var r *RefusedError // before that b may not be there yet
		s.until(func() bool {
			return errors.As(a.job.Query().LastError, &r) && strings.Contains(r.Reason, "another guest's disk")
		})
		if r == nil {
			t.Error(a.job.Query().LastError)
		}
		if p, err := os.ReadFile(s.image("b")); err != nil || !bytes.Equal(p, before) {
			t.Errorf("the image of the other guest was written: %v", err)
		}
		a.halt()
		b.halt()
	})
}
