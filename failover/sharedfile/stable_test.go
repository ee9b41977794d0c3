//go:build unix

package sharedfile

import (
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/failover"
)

// steps notes what a store does to make a state stable, and what is in a file when that is made so.
func steps(s *Store) *[]string {
	did := new([]string)
	sync, link := s.sync, s.link
	s.sync = func(f *os.File) error {
		if f.Name() == s.dir {
			*did = append(*did, "sync the directory")
			return sync(f)
		}
		b, err := os.ReadFile(f.Name())
		*did = append(*did, "sync "+string(b))
		return errors.Join(err, sync(f))
	}
	s.link = func(old, name string) error {
		*did = append(*did, "name it")
		return link(old, name)
	}
	return did
}

// A power cut leaves a state that is whole under its name, or no such name; and none that was
// answered is gone.
func TestAStateIsStableBeforeItHasItsNameAndItsNameBeforeItIsAnswered(t *testing.T) {
	s := open(t)
	did := steps(s)
	r := failover.Record{Generation: 1, Holder: "a", Token: "t", Writes: 1}
	if ok, err := s.Swap(t.Context(), failover.Record{}, r); !ok || err != nil {
		t.Fatal(ok, err)
	}
	if want := []string{"sync " + string(r.Encode()), "name it", "sync the directory"}; !slices.Equal(*did, want) {
		t.Errorf("it did\n%s\nwant\n%s", strings.Join(*did, "\n"), strings.Join(want, "\n"))
	}
}

func TestAStateThatCannotBeMadeStableGetsNoName(t *testing.T) {
	s := open(t)
	s.sync = func(*os.File) error { return io.ErrShortWrite }
	r := failover.Record{Generation: 1, Holder: "a", Token: "t", Writes: 1}
	if ok, err := s.Swap(t.Context(), failover.Record{}, r); ok || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("%v, %v", ok, err)
	}
	if all, err := os.ReadDir(s.dir); err != nil || len(all) > 0 {
		t.Errorf("the directory has %v (%v)", all, err)
	}
}

func TestAStateWhoseNameCannotBeMadeStableIsNotAnswered(t *testing.T) {
	s := open(t)
	sync := s.sync
	s.sync = func(f *os.File) error {
		if f.Name() == s.dir {
			return io.ErrShortWrite
		}
		return sync(f)
	}
	r := failover.Record{Generation: 1, Holder: "a", Token: "t", Writes: 1}
	if ok, err := s.Swap(t.Context(), failover.Record{}, r); ok || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("%v, %v", ok, err)
	}
}
