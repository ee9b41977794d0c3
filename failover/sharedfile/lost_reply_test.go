//go:build unix

package sharedfile

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/failover"
)

// An NFS client whose first LINK was done, and its answer lost, sends it again, and tells
// that the name is there.
func TestANameWhoseAnswerWasLostIsMade(t *testing.T) {
	lost := 0
	s, err := openBy(t.TempDir(), func(old, name string) error {
		if _, err := os.Lstat(name); err == nil {
			return os.Link(old, name) // the one that is to fail
		}
		lost++
		return errors.Join(os.Link(old, name), os.Link(old, name))
	})
	if err != nil {
		t.Fatal("opened:", err)
	}
	advance(t, s, failover.Record{}, 2)
	if lost != 3 {
		t.Errorf("%d answers were lost, want those of Open and of each Swap", lost)
	}
}

func TestADirectoryWhoseLinkReplacesANameIsNotOpened(t *testing.T) {
	_, err := openBy(t.TempDir(), func(old, name string) error {
		os.Remove(name)
		return os.Link(old, name)
	})
	if err == nil || !strings.Contains(err.Error(), "replaces a name") {
		t.Errorf("opened: %v", err)
	}
}

func TestADirectoryWhoseNamesAreTakenIsNotOpened(t *testing.T) {
	_, err := openBy(t.TempDir(), func(string, string) error { return os.ErrExist })
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("opened: %v", err)
	}
}
