//go:build linux && amd64

package kvm

import (
	"errors"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// Several goroutines may want something of a vCPU that stands still: each gets it, and none is told that it runs.
// When the VM is closed, all of them hear of that.
func TestCallsForAVCPUThatStandsStillWaitForEachOther(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	for range 3 {
		vm, err := Create(Config{Memory: PageSize})
		if err != nil {
			t.Fatal(err)
		}
		v := vm.vcpus[0]
		closing := make(chan struct{})
		var calls sync.WaitGroup
		var once [4]sync.WaitGroup
		for i := range once {
			once[i].Add(1)
			calls.Go(func() {
				var err error
				for n := 0; err == nil; n++ {
					if n == 30 {
						once[i].Done()
					}
					if _, err = v.Regs(); err == nil {
						err = v.save()
					}
					if err != nil && n < 30 {
						once[i].Done()
					}
				}
				select {
				case <-closing:
				default:
					t.Error("before the VM is closed:", err)
				}
				if !errors.Is(err, ErrClosed) {
					t.Error(err)
				}
			})
		}
		for i := range once {
			once[i].Wait()
		}
		close(closing)
		if err := vm.Close(); err != nil {
			t.Error(err)
		}
		calls.Wait()
	}
}
