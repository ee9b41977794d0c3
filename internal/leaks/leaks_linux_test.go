package leaks

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWhatIsHeldLaterAndNotBeforeIsNamed(t *testing.T) {
	dir := t.TempDir()
	before := Now(t, dir)
	name := filepath.Join(dir, "kept")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	end, ended := make(chan bool), make(chan bool)
	go func() { <-end; close(ended) }()
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	p, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	q, err := unix.Mmap(-1, 0, 2*LargeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		t.Fatal(err)
	}
	more := strings.Join(Now(t, dir).beyond(before), "\n")
	for _, want := range []string{"descriptor " + name, "file " + name, "mapping r--s of " + name, "goroutine created by ", "bytes of anonymous memory"} {
		if !strings.Contains(more, want) {
			t.Errorf("no %q in\n%s", want, more)
		}
	}
	close(end)
	<-ended
	for _, p := range [][]byte{p, q} {
		if err := unix.Munmap(p); err != nil {
			t.Error(err)
		}
	}
	f.Close()
	os.Remove(name)
	before.Check(t, "all of it was given back")
}

func TestACallIsTriedWithEachNumberOfDescriptorsThatIsTooFew(t *testing.T) {
	open := func() (int, error) { return unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) }
	tried := 0
	n := Starve(t, func() error {
		tried++
		for range 2 {
			fd, err := open()
			if err != nil {
				return err
			}
			defer unix.Close(fd)
		}
		return nil
	})
	if n != 2 || tried != 4 {
		t.Errorf("it needs %d and was tried %d times", n, tried)
	}
	fd, err := open()
	if err != nil {
		t.Fatalf("the limit stays: %v", err)
	}
	unix.Close(fd)
}
