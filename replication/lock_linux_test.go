package replication

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestImagesAreLocked(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	a, err := CreateFile(name, testSize)
	must(t, err)
	if !a.Made() {
		t.Error("an image that was just made is not called so")
	}
	_, err = OpenFile(name)
	wantErr(t, "the same image", err, ErrLocked)
	wantErr(t, "as an errno", err, syscall.EBUSY)
	if !strings.Contains(err.Error(), name) {
		t.Errorf("%v does not say which", err)
	}
	_, err = CreateFile(name, testSize)
	wantErr(t, "the same image", err, ErrLocked)
	must(t, a.Close())
	b, err := CreateFile(name, testSize)
	must(t, err)
	if b.Made() {
		t.Error("an image that was there is called made")
	}
	must(t, b.Close())
}

// A copy of the descriptor is what a process has for a moment that is being started.
func TestAClosedImageIsFreeThoughItsDescriptorWasCopied(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(name, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := syscall.Dup(int(d.f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
}

// An image that is empty may be one that another process is about to make, of
// another size.
func TestAnImageThatIsLockedIsLeftAsItIs(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := lockFile(f); err != nil {
		t.Fatal(err)
	}
	if _, err := CreateFile(name, 1<<20); !errors.Is(err, ErrLocked) {
		t.Errorf("CreateFile: error %v", err)
	}
	if _, err := OpenFile(name); !errors.Is(err, ErrLocked) {
		t.Errorf("OpenFile: error %v", err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != 0 {
		t.Errorf("it has %d bytes, %v", st.Size(), err)
	}
}

func TestItIsKnownWhoHasAnImageLocked(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f, err := CreateFile(name, testSize)
	must(t, err)
	if locked, pid, err := LockedBy(name); !locked || pid != os.Getpid() || err != nil {
		t.Errorf("locked %v by %d: %v, want by this process, %d", locked, pid, err, os.Getpid())
	}
	must(t, f.Close())
	if locked, pid, err := LockedBy(name); locked || pid != 0 || err != nil {
		t.Errorf("after it was closed: locked %v by %d: %v", locked, pid, err)
	}
}
