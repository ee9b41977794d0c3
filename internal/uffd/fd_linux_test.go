//go:build linux && (amd64 || arm64)

package uffd

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var pageSize = os.Getpagesize()

// mapPages maps memory for a test.
func mapPages(t testing.TB, pages int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return mem
}

// openFD opens a userfaultfd for a test, which is skipped without.
func openFD(t testing.TB, features Feature) *FD {
	t.Helper()
	f, err := Open(features)
	require.Granted(t, require.Userfaultfd, err)
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// pageOf returns page i of mem.
func pageOf(mem []byte, i int) []byte { return mem[i*pageSize : (i+1)*pageSize] }

// serve places pages of content where they are wanted, until the test ends.
func serve(t *testing.T, f *FD, mem, content []byte) (asked func() int) {
	t.Helper()
	var mu sync.Mutex
	n := 0
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]Fault, 4)
		for {
			got, err := f.Faults(buf)
			if err != nil {
				if !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
				return
			}
			for _, fault := range buf[:got] {
				i := int(fault.Addr-uintptr(unsafe.Pointer(&mem[0]))) / pageSize
				mu.Lock()
				n++
				mu.Unlock()
				if _, err := f.Copy(pageOf(mem, i), pageOf(content, i)); err != nil && !errors.Is(err, ErrExists) {
					t.Error(err)
				}
			}
		}
	}()
	t.Cleanup(func() {
		f.Interrupt()
		<-done
	})
	return func() int {
		mu.Lock()
		defer mu.Unlock()
		return n
	}
}

func TestAMissingPageIsAskedForAndPlacedWhole(t *testing.T) {
	for name, populate := range map[string]func([]byte) error{"populate": Populate, "before Linux 5.14": readThrough} {
		t.Run(name, func(t *testing.T) {
			f := openFD(t, 0)
			mem, content := mapPages(t, 16), make([]byte, 16*pageSize)
			for i := range content {
				content[i] = byte(i/pageSize + i)
			}
			if err := f.Register(mem, ModeMissing); err != nil {
				t.Fatal(err)
			}
			asked := serve(t, f, mem, content)
			if err := populate(mem); err != nil {
				t.Fatal(err)
			}
			if asked() < 16 {
				t.Errorf("asked for %d pages of 16", asked())
			}
			if !bytes.Equal(mem, content) {
				t.Error("the memory is not what was placed")
			}
			if err := f.Unregister(mem); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMemoryThatIsNotThereIsNotPopulated(t *testing.T) {
	mem := mapPages(t, 2)
	if err := unix.Mprotect(mem[pageSize:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	for name, populate := range map[string]func([]byte) error{"populate": Populate, "before Linux 5.14": readThrough} {
		if err := populate(mem); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestASystemCallWaitsForAMissingPage(t *testing.T) {
	f := openFD(t, 0)
	mem, content := mapPages(t, 2), bytes.Repeat([]byte("wx"), pageSize)
	if err := f.Register(mem, ModeMissing); err != nil {
		t.Fatal(err)
	}
	serve(t, f, mem, content)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := unix.Write(int(w.Fd()), mem[:8]); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 8)
	if _, err := r.Read(got); err != nil || string(got) != "wxwxwxwx" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAPageThatIsThereIsLeftAsItIs(t *testing.T) {
	f := openFD(t, 0)
	mem := mapPages(t, 3)
	mem[pageSize] = 7 // page 1 is there
	if err := f.Register(mem, ModeMissing); err != nil {
		t.Fatal(err)
	}
	n, err := f.Copy(mem, bytes.Repeat([]byte{9}, len(mem)))
	if n != pageSize || !errors.Is(err, ErrExists) {
		t.Errorf("Copy: %d bytes, %v", n, err)
	}
	if n, err := f.Zero(mem[pageSize:]); n != 0 || !errors.Is(err, ErrExists) {
		t.Errorf("Zero: %d bytes, %v", n, err)
	}
	if n, err := f.Zero(mem[2*pageSize:]); n != pageSize || err != nil {
		t.Errorf("Zero: %d bytes, %v", n, err)
	}
	if err := f.Wake(mem); err != nil {
		t.Error(err)
	}
	if mem[0] != 9 || mem[pageSize] != 7 || mem[pageSize+1] != 0 || mem[2*pageSize] != 0 {
		t.Error("a page has other contents than were placed")
	}
}

func TestMemoryIsRegisteredOnce(t *testing.T) {
	a, b := openFD(t, 0), openFD(t, 0)
	mem := mapPages(t, 1)
	if err := a.Register(mem, ModeMissing); err != nil {
		t.Fatal(err)
	}
	if err := b.Register(mem, ModeMissing); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "another userfaultfd") {
		t.Errorf("the second: %v", err)
	}
	if err := a.Unregister(mem); err != nil {
		t.Error(err)
	}
	if err := b.Register(mem, ModeMissing); err != nil {
		t.Errorf("after the first has let go: %v", err)
	}
}

func TestMemoryThatIsNotWholePagesIsRefused(t *testing.T) {
	f := openFD(t, 0)
	mem := mapPages(t, 2)
	for _, bad := range [][]byte{nil, mem[1:], mem[:1], mem[:pageSize+1]} {
		_, cerr := f.Copy(bad, bad)
		_, zerr := f.Zero(bad)
		for what, err := range map[string]error{"Register": f.Register(bad, ModeMissing), "Unregister": f.Unregister(bad), "Wake": f.Wake(bad), "WriteProtect": f.WriteProtect(bad, true), "Copy": cerr, "Zero": zerr} {
			if !errors.Is(err, ErrRange) {
				t.Errorf("%s of %d bytes: %v", what, len(bad), err)
			}
		}
	}
	if _, err := f.Copy(mem, mem[:pageSize]); !errors.Is(err, ErrRange) {
		t.Errorf("Copy of less than its destination: %v", err)
	}
}

func TestInterruptEndsAWaitForFaults(t *testing.T) {
	f := openFD(t, 0)
	got := make(chan error)
	go func() {
		_, err := f.Faults(make([]Fault, 1))
		got <- err
	}()
	f.Interrupt()
	select {
	case err := <-got:
		if !errors.Is(err, ErrClosed) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("Faults still waits")
	}
	if _, err := f.Faults(make([]Fault, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("the next: %v", err)
	}
}

func TestNothingWorksAfterClose(t *testing.T) {
	f := openFD(t, 0)
	mem := mapPages(t, 1)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Register(mem, ModeMissing); !errors.Is(err, ErrClosed) {
		t.Errorf("Register: %v", err)
	}
	if _, err := f.Faults(make([]Fault, 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("Faults: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close again: %v", err)
	}
}

func TestPlacingAPageAllocatesNothing(t *testing.T) {
	f := openFD(t, 0)
	const pages = 500
	mem, src := mapPages(t, pages), mapPages(t, 1)
	src[0] = 1
	if err := f.Register(mem, ModeMissing); err != nil {
		t.Fatal(err)
	}
	i := 0
	if n := testing.AllocsPerRun(pages-2, func() {
		if _, err := f.Copy(pageOf(mem, i), src); err != nil {
			t.Error(err)
		}
		i++
	}); n >= 1 { // the pool gives some of its memory back at a collection
		t.Errorf("%v allocations per page", n)
	}
}

// fakeKernel answers as an older or a stricter kernel does.
type fakeKernel struct {
	call, dev error // of the two ways to a descriptor
	features  Feature
	api       error
	opened    int
	scan      error
	path      string // what a descriptor is of; "": something that can be waited for
}

func (k *fakeKernel) fd(err error) (int, error) {
	if err != nil {
		return -1, err
	}
	k.opened++
	if k.path != "" {
		return unix.Open(k.path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	}
	return unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
}

func (k *fakeKernel) userfaultfd(int) (int, error) { return k.fd(k.call) }
func (k *fakeKernel) device(int) (int, error)      { return k.fd(k.dev) }

func (k *fakeKernel) ioctl(_ int, request uintptr, arg unsafe.Pointer) (int, error) {
	switch request {
	case uffdioAPI:
		a := (*apiArg)(arg)
		if Feature(a.features)&^k.features != 0 {
			return 0, unix.EINVAL
		}
		a.features = uint64(k.features)
		return 0, k.api
	case pagemapScan:
		return 0, k.scan
	}
	return 0, fmt.Errorf("request %#x", request)
}

func TestTheErrorNamesWhatIsMissing(t *testing.T) {
	const all = WPAsync | WPUnpopulated | PagefaultFlagWP
	for name, x := range map[string]struct {
		k     fakeKernel
		is    error
		wants []string
	}{
		"no system call":   {fakeKernel{call: unix.ENOSYS}, errors.ErrUnsupported, []string{"userfaultfd(2)", "CONFIG_USERFAULTFD"}},
		"not allowed":      {fakeKernel{call: unix.EPERM, dev: unix.EACCES}, fs.ErrPermission, []string{"CAP_SYS_PTRACE", "vm.unprivileged_userfaultfd=1", "/dev/userfaultfd"}},
		"no device":        {fakeKernel{call: unix.EPERM, dev: unix.ENOENT}, fs.ErrPermission, []string{"/dev/userfaultfd", "no such file"}},
		"Linux 6.6":        {fakeKernel{features: PagefaultFlagWP | WPUnpopulated}, errors.ErrUnsupported, []string{"UFFD_FEATURE_WP_ASYNC (Linux 6.7 on x86-64)"}},
		"Linux 5.19":       {fakeKernel{features: PagefaultFlagWP | WPHugetlbfsShmem}, errors.ErrUnsupported, []string{"UFFD_FEATURE_WP_UNPOPULATED (Linux 6.4 on x86-64)", "UFFD_FEATURE_WP_ASYNC (Linux 6.7 on x86-64)"}},
		"something else":   {fakeKernel{features: all, api: unix.ENOMEM}, unix.ENOMEM, []string{"UFFDIO_API"}},
		"too many files":   {fakeKernel{call: unix.EMFILE}, unix.EMFILE, []string{"userfaultfd"}},
		"device with less": {fakeKernel{call: unix.EPERM, features: PagefaultFlagWP}, errors.ErrUnsupported, []string{"WP_ASYNC"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := openFiles(t)
			f, err := open(&x.k, all)
			if f != nil || !errors.Is(err, x.is) {
				t.Fatalf("%v, %v", f, err)
			}
			for _, w := range x.wants {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not name %q", err, w)
				}
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d files open, before %d", after, before)
			}
		})
	}
}

// Where Go's poller does not take the descriptor (there may be too many already), Faults would
// not wait, and nobody would answer who touches memory: that is known before any is missing.
func TestWhetherFaultsCanBeWaitedForIsKnownBefore(t *testing.T) {
	for path, can := range map[string]bool{"": true, "/dev/null": false} {
		f, err := open(&fakeKernel{features: WPAsync, path: path}, WPAsync)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.CanWait(); (err == nil) != can {
			t.Errorf("%q: %v", path, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFaultsWithoutRoomAreNone(t *testing.T) {
	f := openFD(t, 0)
	if n, err := f.Faults(nil); n != 0 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
}

func TestADeviceServesWhereTheCallIsNotAllowed(t *testing.T) {
	k := &fakeKernel{call: unix.EPERM, features: WPAsync}
	f, err := open(k, WPAsync)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// openFiles counts the process's files.
func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestDroppedPagesAreMissing(t *testing.T) {
	fd, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, int64(4*pageSize)); err != nil {
		t.Fatal(err)
	}
	shared, err := unix.Mmap(fd, 0, 4*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(shared)
	for name, mem := range map[string][]byte{"anonymous": mapPages(t, 4), "of a file in memory": shared} {
		for i := range mem {
			mem[i] = 1
		}
		if err := errors.Join(SmallPages(mem), Drop(mem[pageSize:3*pageSize])); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		f := openFD(t, MissingShmem)
		if err := f.Register(mem, ModeMissing); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if n, err := f.Copy(mem[pageSize:], bytes.Repeat([]byte{2}, 3*pageSize)); n != 2*pageSize || !errors.Is(err, ErrExists) {
			t.Errorf("%s: %d bytes placed, %v", name, n, err)
		}
		if err := f.Unregister(mem); err != nil {
			t.Error(err)
		}
		if mem[0] != 1 || mem[pageSize] != 2 || mem[2*pageSize] != 2 || mem[3*pageSize] != 1 {
			t.Errorf("%s: %v", name, []byte{mem[0], mem[pageSize], mem[2*pageSize], mem[3*pageSize]})
		}
	}
}
