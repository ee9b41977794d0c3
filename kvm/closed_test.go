//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// The number of a descriptor is another file's soon after it has been closed. A device looks whether
// the VM is there and calls KVM in one step, between which no Close gets.
func TestNoDeviceIsSavedOrRestoredByADescriptorThatIsAnotherFilesByNow(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	must := musts(t)
	vm, err := Create(Config{Memory: PageSize})
	must(0, err)
	defer vm.Close()
	null, err := os.Open(os.DevNull)
	must(0, err)
	defer null.Close()
	kept := must(unix.FcntlInt(uintptr(vm.fd), unix.F_DUPFD_CLOEXEC, 0))
	defer unix.Close(kept)
	devices := []interface {
		vmstate.PreSaver
		vmstate.PostLoader
	}{chipDevice{vm}, pitDevice{vm}, clockDevice{vm}}
	for _, d := range devices {
		must(0, errors.Join(d.PreSave(), d.PostLoad(1)))
	}

	var done atomic.Bool
	var group sync.WaitGroup
	group.Go(func() { // what closes the VM, as seen from here, and brings it back
		for !done.Load() {
			for _, fd := range []int{int(null.Fd()), kept} {
				vm.mu.Lock()
				vm.closed = fd != kept
				err := unix.Dup3(fd, vm.fd, unix.O_CLOEXEC)
				vm.mu.Unlock()
				if err != nil {
					t.Error(err)
				}
			}
		}
	})
	saved, closed := 0, 0
	for n := 0; n < 500 || saved == 0 || closed == 0; n++ {
		for _, d := range devices {
			for _, err := range []error{d.PreSave(), d.PostLoad(1)} {
				switch {
				case err == nil:
					saved++
				case errors.Is(err, ErrClosed):
					closed++
				default:
					t.Errorf("%T: %v", d, err)
				}
			}
		}
		if t.Failed() {
			break
		}
	}
	done.Store(true)
	group.Wait()
}

// lapsing is a context that has ended as soon as its flag is set, and tells nobody.
type lapsing struct {
	context.Context
	ended atomic.Bool
}

func (*lapsing) Done() <-chan struct{} { return nil }

func (c *lapsing) Err() error {
	if c.ended.Load() {
		return context.Canceled
	}
	return nil
}

// Of two Pauses one is undone by a Resume, the other gives up. Since then the VM runs, which who
// still waits for its vCPUs to stop is told at once.
func TestAPauseThatGivesUpWakesTheOneThatWasUndone(t *testing.T) {
	vm := &VM{active: 1} // its vCPU does not stop
	pauses := func(n int) {
		for {
			vm.mu.Lock()
			there := vm.pauses == n
			vm.mu.Unlock()
			if there {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}
	ctx := &lapsing{Context: context.Background()}
	undone, gaveUp := make(chan error, 1), make(chan error, 1)
	go func() { undone <- vm.Pause(context.Background()) }()
	go func() { gaveUp <- vm.Pause(ctx) }()
	pauses(2)
	if err := vm.Resume(context.Background()); err != nil {
		t.Fatal(err)
	}
	before := vm.still.Seen()
	ctx.ended.Store(true)
	if err := <-gaveUp; !errors.Is(err, context.Canceled) {
		t.Error("the Pause that gives up:", err)
	}
	if vm.still.Seen() == before {
		t.Error("nobody is woken")
	}
	if err := <-undone; !errors.Is(err, ErrResumed) {
		t.Error("the Pause that was undone:", err)
	}
}
