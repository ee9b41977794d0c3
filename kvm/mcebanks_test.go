//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/vmstate"
)

// KVM sets the controls of the banks when it gives a vCPU others. A vCPU that has stood still since its last load,
// and is given only what differs, has the state's all the same.
func TestAVCPUThatIsGivenOtherBanksIsGivenTheirRegisters(t *testing.T) {
	const mc0Ctl, ctl = 0x400, 1 << 8
	list, v, load := states(t)
	entry := func(value uint64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, msrMCGCap), value)
	}
	few := bytes.Replace(list[0], entry(32), entry(10|ctl), 1)
	if bytes.Equal(few, list[0]) || !v.vm.sys.lets(10|ctl) {
		t.Skip("this KVM has other machine-check banks")
	}
	for _, state := range [][]byte{list[0], list[0], few, few, list[0]} {
		load(state)
		want, _ := v.staged.savedMSR(msrMCGCap)
		if got := shows(t, v); got.mcg != want {
			t.Errorf("the vCPU has MCG_CAP %#x, want %#x", got.mcg, want)
		}
		for _, index := range []uint32{mc0Ctl, mc0Ctl + 4*9, 0x17b} {
			if value, _, err := v.state.readMSR(v.fd, index); err != nil || value != 0 {
				t.Errorf("MSR %#x is %#x (%v), of no state", index, value, err)
			}
		}
	}
}

// A vCPU whose banks were set, and could not be read back, is given those of the next state, also if they are the ones that it had.
func TestAVCPUWhoseBanksCannotBeReadBackIsGivenThemAnew(t *testing.T) {
	list, v, load := states(t)
	entry := func(value uint64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, msrMCGCap), value)
	}
	few := bytes.Replace(list[0], entry(32), entry(10), 1)
	if bytes.Equal(few, list[0]) {
		t.Skip("this KVM has other machine-check banks")
	}
	reg := &vmstate.Registry{}
	if err := v.vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	load(list[0])
	if err := reg.LoadDevices(few, nil); err != nil {
		t.Fatal(err)
	}
	if err := leaks.Refuse(t, request(kvmGetMSRs), refusal, reg.Commit); err == nil {
		t.Error("a state was loaded without a look at the MSRs")
	}
	load(list[0])
	if got := shows(t, v); got.mcg != 32 {
		t.Errorf("the vCPU has MCG_CAP %#x, want 32", got.mcg)
	}
}

// lets reports whether this KVM gives a vCPU such banks.
func (s *System) lets(mcgCap uint64) bool {
	value, ok := valueOf(s.supports, msrMCGCap)
	return ok && len(featureOf(msrMCGCap).lacks(mcgCap, value)) == 0
}

// What KVM lets machine-check banks do is part of what a host supports, and not of what a guest is created with.
func TestMachineCheckBanksAreSupportedAndChosenByTheVMM(t *testing.T) {
	list, v, _ := states(t)
	sys := v.vm.sys
	value, ok := valueOf(sys.supports, msrMCGCap)
	if banks := capability(v.vm.fd, capMCE); banks > 0 && (!ok || value&0xff != uint64(banks)) {
		t.Errorf("%#x (%v), of %d banks", value, ok, banks)
	}
	if common := commonFeatures(sys.supports, nil); slices.ContainsFunc(common, func(m MSR) bool { return m.Index == msrMCGCap }) {
		t.Error("a guest is to be created with", common)
	}
	for _, other := range []uint64{1, 32 | 1<<8} {
		if err := v.SetFeatures([]MSR{{msrMCGCap, other}}); err == nil {
			t.Errorf("a vCPU takes %#x for MCG_CAP as an MSR", other)
		}
	}
	if !bytes.Contains(list[0], binary.LittleEndian.AppendUint64(nil, msrMCGCap)) {
		t.Error("a state does not have it")
	}
}
