//go:build unix

package sharedfile

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// A name that is not that of a file is an error, and nobody waits for it, or asks again and again.
func TestAStateThatIsNoFileIsAnError(t *testing.T) {
	for name, put := range map[string]func(path string) error{
		"a pipe":                       func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a directory":                  func(path string) error { return os.Mkdir(path, 0o700) },
		"a device":                     func(path string) error { return os.Symlink("/dev/zero", path) },
		"a name for nothing":           func(path string) error { return os.Symlink("nothing", path) },
		"a name for itself":            func(path string) error { return os.Symlink(filepath.Base(path), path) },
		"a file that nobody may read":  func(path string) error { return os.WriteFile(path, nil, 0) },
		"a socket":                     func(path string) error { return syscall.Mknod(path, syscall.S_IFSOCK|0o600, 0) },
		"a pipe with a writer":         pipeWithWriter(t),
		"a name for another directory": func(path string) error { return os.Symlink(t.TempDir(), path) },
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			if err := put(s.state(1)); err != nil {
				t.Skip(err)
			}
			said := make(chan error, 2)
			go func() {
				_, err := s.Load(t.Context())
				said <- err
				_, err = s.Swap(t.Context(), failover.Record{Writes: 1}, failover.Record{Writes: 2})
				said <- err
			}()
			for _, what := range []string{"load", "swap"} {
				select {
				case err := <-said:
					if err == nil && what == "load" || errors.Is(err, failover.ErrRefused) {
						t.Errorf("%s: %v", what, err)
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("%s does not return", what)
				}
			}
		})
	}
}

// pipeWithWriter makes a pipe that somebody has open to write, and says nothing.
func pipeWithWriter(t *testing.T) func(path string) error {
	return func(path string) error {
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { f.Close() })
		return nil
	}
}

// Of a record whose number is near the end of all numbers, as a person may have written it, the newest
// state stays as well.
func TestARecordNearTheEndOfItsNumbersIsKept(t *testing.T) {
	s := open(t)
	r := failover.Record{Generation: 3, Writes: math.MaxUint64 - 3}
	if err := os.WriteFile(s.state(r.Writes), r.Encode(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := advance(t, s, r, 3); got.Writes != math.MaxUint64 {
		t.Fatal(got)
	}
	for n := r.Writes; n != 0; n++ {
		if _, err := os.Stat(s.state(n)); err != nil {
			t.Error(err)
		}
	}
}
