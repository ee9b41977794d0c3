//go:build linux && amd64

package kvm

import (
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// On one CPU nobody watches for another thread instead of sleeping, since that one runs
// only when the watcher does not.
func TestOnOneCPUNobodyWatches(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	if !require.OneCPU(t) {
		return
	}
	for vcpus := 1; vcpus <= 2; vcpus++ {
		vm, err := Create(Config{VCPUs: vcpus, Memory: PageSize})
		if err != nil {
			t.Fatal(err)
		}
		defer vm.Close()
		if vm.watching != 0 || vcpus > 1 && vm.gathers != 0 {
			t.Errorf("%d vCPUs: watched for %v, and for each other for %v", vcpus, vm.watching, vm.gathers)
		}
	}
}
