package protect

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// A host that was away while the disk grew makes its copy longer when it comes back; one whose image is of
// another disk, or of none, is refused with both lengths, and its image stays as it is.
func TestAHostThatWasAwayWhileADiskGrewCatchesUp(t *testing.T) {
	for name, known := range map[string]bool{"the same disk": true, "a blank image": false} {
		withGrowing(t, name, func(t *testing.T, w *world) {
			a, b := w.protected()
			b.kill(false)
			b.bury()
			a.is(Alone)
			if err := a.job.Grow(t.Context(), "root", grownSize); err != nil {
				t.Fatal(err)
			}
			sizes(t, grownSize, a)
			sizes(t, diskSize, b)
			if !known {
				w.images["b"] = &image{b: make([]byte, diskSize)}
				w.kept["b"] = &lasting{meta: &image{b: make([]byte, 2*metadataBytes)}}
			}
			b = w.boot("b", false, nil)
			if known {
				a.is(Protected)
				b.is(Following)
				sizes(t, grownSize, a, b)
			} else {
				time.Sleep(5 * time.Second)
				const want = `the disk "root" has 1048576 bytes here, 2162688 there`
				if err := a.job.Query().LastError; a.job.State() != Alone || err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v: %v", a.job.State(), err)
				}
				sizes(t, diskSize, b)
			}
			a.halt()
			b.halt()
		})
	}
}

// Where a host that has the guest cannot make its disk as long as the other's, it says so, and protects
// the guest when it can.
func TestAHostThatCannotCatchUpSaysSo(t *testing.T) {
	withGrowing(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		small := true
		w.grows = func(h *host, _ int64) error {
			if small && h == a {
				return errSmall
			}
			return nil
		}
		if err := a.job.Grow(t.Context(), "root", grownSize); !errors.Is(err, errSmall) {
			t.Errorf("%v", err)
		}
		if got := a.job.State(); got != Protected {
			t.Errorf("it is %v", got)
		}
		if a.disk.Size() != diskSize || a.toldSize.Load() != 0 {
			t.Errorf("%d bytes, of which the guest is told %d", a.disk.Size(), a.toldSize.Load())
		}
		w.hearsMore()
		w.f.part("a", "b", false)
		a.is(Alone)
		w.f.join("a", "b")
		time.Sleep(10 * time.Second)
		const want = `disk "root" has 2162688 bytes on b, and cannot become as long here`
		if err := a.job.Query().LastError; a.job.State() != Alone || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v", a.job.State(), err)
		}
		small = false
		a.is(Protected)
		sizes(t, grownSize, a, b)
		if told := a.toldSize.Load(); told != grownSize {
			t.Errorf("the guest is told of %d bytes", told)
		}
		a.halt()
		b.halt()
	})
}

// Nobody but the primary of the session connects to a longer copy, and to what there is.
func TestAStrangerDoesNotReachACopyThatHasGrown(t *testing.T) {
	withGrowing(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		for name, change := range map[string]func(*hello){
			"no token":          func(h *hello) { h.Token = "" },
			"another token":     func(h *hello) { h.Token += "x" },
			"an old generation": func(h *hello) { h.Generation-- },
			"another host":      func(h *hello) { h.Host = "c" },
			"another disk":      func(h *hello) { h.Channel += "x" },
			"checksums":         func(h *hello) { h.Channel = chGrown + chDiskSums + "root" },
			"nothing":           func(h *hello) { h.Channel = chGrown },
		} {
			h := again(a)
			h.Channel = chGrown + chDiskData + "root"
			change(&h)
			conn, _, err := dial(t.Context(), &a.job.cfg, h)
			var refused *RefusedError
			if !errors.As(err, &refused) || !strings.Contains(refused.Reason, "belongs to no session") {
				t.Errorf("%s: %v, %v", name, conn, err)
			}
		}
		a.halt()
		b.halt()
	})
}

// A primary that asks for what cannot be is refused, whatever it asks for, and one that makes connections
// without an end has at most so many.
func TestWhatAPrimaryAsksOfADiskIsBounded(t *testing.T) {
	withGrowing(t, "", func(t *testing.T, w *world) {
		a, b := w.protected()
		s, there := a.job.session(), b.job.session()
		for i, n := range []note{
			{Disk: "root", Size: 1 << 62}, {Disk: "root", Size: -1}, {Disk: "root"}, {Disk: "root", Size: diskSize - 4096},
			{Disk: "root", Size: DefaultMaxSize + sectorSize}, {Disk: "root", Size: grownSize + 1}, {Disk: strings.Repeat("x", 300), Size: grownSize}, {Size: grownSize},
		} {
			n.Say, n.Seq = sayGrow, 1000+uint64(i)
			s.peer.say(n)
			var answer *note
			if err := s.peer.await(t.Context(), func() bool {
				answer = s.peer.grown
				return answer != nil && answer.Seq == n.Seq
			}); err != nil || answer.Reason == "" {
				t.Errorf("%+v: %+v, %v", n, answer, err)
			}
		}
		there.peer.say(note{Say: sayGrow, Seq: 1, Disk: "root", Size: grownSize}) // to a primary
		there.peer.say(note{Say: sayGrown, Seq: 1})
		sizes(t, diskSize, a, b)
		h := again(a)
		h.Channel = chGrown + chDiskData + "root"
		for i := range maxRegrown + 1 {
			conn, _, err := dial(t.Context(), &a.job.cfg, h)
			if (err == nil) != (i < maxRegrown) {
				t.Errorf("connection %d: %v", i, err)
			}
			if err == nil {
				defer conn.Close()
			}
		}
		w.hearsMore()
		if a.job.session() != s {
			t.Error("it is another session")
		}
		a.halt()
		b.halt()
	})
}
