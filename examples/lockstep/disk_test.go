package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/trial"
	"github.com/gocolo/lockstep/replication"
)

func TestAnImageThatIsNotTheGuestsDiskIsRefused(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f, err := replication.CreateFile(name, 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	open := func(name string, size uint64) error {
		h := newHost(trial.SideConfig{Disk: name, Guest: guest.Params{Disk: size}}, nil)
		c, err := h.openDisk()
		if (err == nil) != (c != nil) || err == nil && (h.disk == nil) != (name == "") {
			t.Errorf("%q of %d bytes: disk %v, %v", name, size, h.disk, err)
		}
		if err == nil {
			err = c.Close()
		}
		return err
	}
	if err := open(name, 128<<10); err == nil || !strings.Contains(err.Error(), "has 65536 bytes, the guest's disk has 131072") {
		t.Errorf("a shorter one: %v", err)
	}
	if err := open(name, 32<<10); err != nil {
		t.Errorf("a longer one, as one is that has grown: %v", err)
	}
	if err := open(name+"x", 64<<10); !os.IsNotExist(err) {
		t.Errorf("none: %v", err)
	}
	if err := open("", 0); err != nil {
		t.Errorf("a guest without a disk: %v", err)
	}
	if err := open(name, 64<<10); err != nil { // which nobody has locked
		t.Error(err)
	}
}

// flat is a disk in memory that counts what is made stable.
type flat struct {
	replication.Disk
	b           [16]byte
	syncs       int
	write, sync error
}

func (f *flat) WriteAt(p []byte, off int64) (int, error) { return copy(f.b[off:], p), f.write }
func (f *flat) Sync() error                              { f.syncs++; return f.sync }

func TestAWriteIsStableWhenTheGuestHasAskedForIt(t *testing.T) {
	d := new(flat)
	for i, flush := range []bool{false, true} {
		if err := writeTo(d, []byte{1}, int64(i), flush); err != nil || d.b[i] != 1 || d.syncs != i {
			t.Errorf("flush %v: %v, %d times stable, %v", flush, d.b, d.syncs, err)
		}
	}
}

// A host that was stopped may wake when its guest is the other host's. What the guest here writes then
// is refused, and the vCPU that writes it must live: it runs that guest, too, when this host has it again.
func TestAVCPUOutlivesTheLossOfItsGuest(t *testing.T) {
	for _, refused := range []error{replication.ErrFenced, replication.ErrNotRunning} {
		wrapped := fmt.Errorf("disk: %w", refused)
		for _, d := range []*flat{{write: wrapped}, {sync: wrapped}} {
			if err := writeTo(d, []byte{1}, 0, true); err != nil {
				t.Error(err)
			}
		}
	}
	worn := errors.New("the disk is worn")
	for _, d := range []*flat{{write: worn}, {sync: worn}} {
		if err := writeTo(d, []byte{1}, 0, true); err != worn {
			t.Errorf("a disk that fails: %v", err)
		}
	}
}
