package sharedfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/failover"
)

// A host that can read the record, and not write it, would find out when it is to take over.
func TestADirectoryThatCannotBeWrittenIsNotOpened(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(dir, 0o555), os.Chmod(filepath.Dir(dir), 0o711)); err != nil {
		t.Fatal(err)
	}
	opened := make(chan error)
	go func() {
		if os.Getuid() == 0 {
			// Of this thread alone, which ends with the goroutine.
			runtime.LockOSThread()
			if err := syscall.Setfsuid(65534); err != nil {
				opened <- err
				return
			}
		}
		_, err := Open(dir)
		opened <- err
	}()
	if err := <-opened; !errors.Is(err, fs.ErrPermission) {
		t.Errorf("opened: %v", err)
	}
}

// A file system that is full takes an empty file, and the record of no failover.
func TestADirectoryIsTriedWithAFileAsLongAsAnyRecord(t *testing.T) {
	var long int64
	if _, err := openBy(t.TempDir(), func(old, name string) error {
		fi, err := os.Stat(old)
		if err != nil {
			return err
		}
		long = fi.Size()
		return os.Link(old, name)
	}); err != nil || long < failover.MaxRecord {
		t.Errorf("it was tried with %d bytes, %v", long, err)
	}
}

func TestOpeningADirectoryLeavesNothingInIt(t *testing.T) {
	s := open(t)
	if all, err := os.ReadDir(s.dir); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
}
