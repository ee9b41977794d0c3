//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

// Whatever a state says, but of MSRs that name memory: what is taken while it is decoded, KVM takes as well when it is committed,
// and a state that was good before is as good after it.
func TestAStateThatIsTakenWhileItIsDecodedIsRestored(t *testing.T) {
	list, v, load := states(t)
	vm := v.vm
	reg := &vmstate.Registry{}
	if err := vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	load(list[0])
	want := shows(t, v)
	rounds := 1000
	if testing.Short() {
		rounds = 100
	}
	r := rand.New(rand.NewPCG(3, 4))
	taken := 0
	for n := range rounds {
		bad := bytes.Clone(list[r.IntN(len(list))])
		for range 1 + r.IntN(3) {
			i := r.IntN(len(bad))
			switch r.IntN(3) {
			case 0:
				bad[i] ^= 1 << r.IntN(8)
			case 1:
				bad[i] = byte(r.Uint32())
			default:
				bad[i] = [...]byte{0, 1, 0x7f, 0x80, 0xff}[r.IntN(5)]
			}
		}
		reg.NewSession()
		if err := reg.LoadDevices(bad, nil); err != nil {
			continue
		}
		taken++
		var msr *MSRError // of one that a VM without memory cannot try, nothing is promised
		if err := reg.Commit(); err != nil && !(errors.As(err, &msr) && !tried(msr.Index)) {
			t.Errorf("round %d: it was taken, and then: %v", n, err)
		}
		if n%20 == 0 {
			load(list[0])
			sameState(t, "after it", shows(t, v), want)
		}
	}
	if taken < rounds/10 {
		t.Errorf("%d of %d states were taken", taken, rounds)
	}
}

// A vCPU that has run keeps its CPUID: KVM gives it no other, which is known while the state is
// decoded. One that has not run takes it.
func TestAVCPUThatHasRunTakesNoOtherCPUID(t *testing.T) {
	list, v, load := states(t)
	other := func(s *VCPUState) bool { // clears a feature that a guest can be without
		for i := range s.cpuid.entries[:s.cpuid.n] {
			if c := &s.cpuid.entries[i]; c.Function == 1 {
				const fxsr = 1 << 24
				had := c.Edx&fxsr != 0
				c.Edx &^= fxsr
				return had
			}
		}
		return false
	}
	load(list[0])
	if !other(v.staged) {
		t.Fatal("no features in the state")
	}
	if err := v.staged.check(v.staged.apic); !errors.Is(err, ErrState) {
		t.Errorf("a vCPU that has run: %v, want ErrState", err)
	}

	vm, err := Create(Config{VCPUs: 1, Memory: uint64(len(v.vm.Memory()))})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	reg := &vmstate.Registry{}
	fresh := vm.vcpus[0]
	if err := errors.Join(vm.Register(reg), reg.LoadDevices(list[0], nil), reg.Commit()); err != nil {
		t.Fatal(err)
	}
	other(fresh.staged)
	if err := errors.Join(fresh.staged.check(fresh.staged.apic), fresh.restore()); err != nil {
		t.Error("a vCPU that has not run:", err)
	}
}

// What KVM itself keeps up to date of a CPUID may be anything in a state for a vCPU that has run: KVM refuses
// some of it on some hosts, such as the sizes of the XSAVE area, and so is not asked.
func TestAVCPUThatHasRunKeepsItsCPUIDWhateverAStateSaysOfWhatKVMKeeps(t *testing.T) {
	list, v, load := states(t)
	for _, c := range []struct {
		function, index uint32
		of              func(*CPUIDEntry) *uint32
		bits            uint32
	}{
		{1, 0, func(e *CPUIDEntry) *uint32 { return &e.Ecx }, 1 << 27}, // OSXSAVE
		{1, 0, func(e *CPUIDEntry) *uint32 { return &e.Ecx }, 1 << 3},  // MONITOR
		{1, 0, func(e *CPUIDEntry) *uint32 { return &e.Edx }, 1 << 9},  // APIC
		{7, 0, func(e *CPUIDEntry) *uint32 { return &e.Ecx }, 1 << 4},  // OSPKE
		{0xd, 0, func(e *CPUIDEntry) *uint32 { return &e.Ebx }, 0x40},
		{0xd, 1, func(e *CPUIDEntry) *uint32 { return &e.Ebx }, 0x40},
	} {
		load(list[0])
		e := findCPUID(v.staged.cpuid.entries[:v.staged.cpuid.n], c.function, c.index)
		if e == nil {
			continue
		}
		*c.of(e) ^= c.bits
		if err := v.staged.check(v.staged.apic); err != nil {
			// Of a feature that this CPU lacks no guest is told, whoever keeps it up to date.
			var cpu *CPUError
			if !errors.As(err, &cpu) {
				t.Errorf("CPUID %#x.%d with %#x changed: %v", c.function, c.index, c.bits, err)
			}
			continue
		}
		if err := v.restore(); err != nil {
			t.Errorf("CPUID %#x.%d with %#x changed, which was taken: %v", c.function, c.index, c.bits, err)
		}
	}
	load(list[0])
}

// A vCPU that has run keeps the features that MSRs tell of, too: a state with others is refused while it
// is decoded. One that has not run takes them.
func TestAVCPUThatHasRunTakesNoOtherFeatureMSRs(t *testing.T) {
	list, v, _ := states(t)
	fresh, err := Create(Config{VCPUs: 1, Memory: uint64(len(v.vm.Memory()))})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	registered := func(vm *VM) *vmstate.Registry {
		reg := &vmstate.Registry{}
		if err := vm.Register(reg); err != nil {
			t.Fatal(err)
		}
		return reg
	}
	ran, other := registered(v.vm), registered(fresh)
	var entry [16]byte
	tried := 0
	for _, index := range v.state.sys.features {
		was, ok, err := v.state.readMSR(v.fd, index)
		if err != nil || !ok || !slices.Contains(v.state.known(), index) {
			continue
		}
		binary.LittleEndian.PutUint32(entry[:], index)
		binary.LittleEndian.PutUint64(entry[8:], was)
		at := bytes.Index(list[0], entry[:])
		if at < 0 {
			t.Errorf("MSR %#x with %#x is not in the state", index, was)
			continue
		}
		bad := bytes.Clone(list[0])
		for bit := range 64 { // the first that a vCPU takes which has not run
			binary.LittleEndian.PutUint64(bad[at+8:], was^1<<bit)
			if err := other.LoadDevices(bad, nil); err != nil {
				continue
			}
			if err := other.Commit(); err != nil {
				t.Errorf("MSR %#x with %#x, on a vCPU that has not run: %v", index, was^1<<bit, err)
			}
			tried++
			var msr *MSRError
			if err := ran.LoadDevices(bad, nil); !errors.As(err, &msr) || !errors.Is(err, ErrState) || msr.Index != index {
				t.Errorf("MSR %#x with %#x in place of %#x, on a vCPU that has run: %v", index, was^1<<bit, was, err)
			}
			break
		}
	}
	if len(v.state.sys.features) > 0 && tried == 0 {
		t.Skip("this KVM takes no other value of a feature's MSR")
	}
	if err := errors.Join(ran.LoadDevices(list[0], nil), ran.Commit()); err != nil {
		t.Error("the state as it was:", err)
	}
}

// Some MSRs name memory to KVM, which refuses the MSR where there is none: so does a state, before anything is loaded.
func TestMemoryThatAnMSRNamesHasToBeTheGuests(t *testing.T) {
	const asyncPF, pvEOI, hypercalls, assist, other = 0x4b564d02, 0x4b564d04, 0x40000001, 0x40000073, 0x4b564d03
	s := &VCPUState{inMemory: func(gpa uint64) bool { return gpa == 0x2000 || gpa == 0x2004 }}
	for _, c := range []struct {
		index uint32
		value uint64
		want  bool
	}{
		{asyncPF, 0x2000 | 1, true}, {asyncPF, 0x2000 | 0xd, true}, {asyncPF, 0x3000 | 1, false}, {asyncPF, 0x2040 | 1, false},
		{asyncPF, 0x3000, true}, {asyncPF, 0, true},
		{pvEOI, 0x2004 | 1, true}, {pvEOI, 0x2000 | 3, true}, {pvEOI, 0x2008 | 1, false}, {pvEOI, 0x2008, true},
		{hypercalls, 0x2000 | 1, true}, {hypercalls, 0x2000 | 0xfff, true}, {hypercalls, 0x3000 | 1, false}, {hypercalls, 0x3000, true},
		{assist, 0x2000 | 1, true}, {assist, 0x2004 | 1, true}, {assist, 0x4000 | 1, false}, {assist, 0x4000, true},
		{other, 0x3000 | 1, true},
	} {
		if got := s.backed(c.index, c.value); got != c.want {
			t.Errorf("MSR %#x with %#x: %v", c.index, c.value, got)
		}
	}
	s.inMemory = nil
	if !s.backed(asyncPF, 0x3000|1) {
		t.Error("memory of which nothing is known is taken for none")
	}
}

// What KVM never takes of an MSR that names memory is refused while the state is decoded, wherever the memory is.
func TestAnMSRThatNamesMemoryIsTriedWithoutIt(t *testing.T) {
	list, v, load := states(t)
	reg := &vmstate.Registry{}
	if err := v.vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	load(list[0])
	const asyncPF, stealTime, pvEOI = 0x4b564d02, 0x4b564d03, 0x4b564d04
	for _, c := range []struct {
		index uint64
		value uint64
	}{
		{asyncPF, 0x10}, {asyncPF, 0x20}, {stealTime, 0x2}, {stealTime, 0x1000 | 0x3f}, {pvEOI, 2},
	} {
		at := bytes.Index(list[0], append(binary.LittleEndian.AppendUint64(nil, c.index), make([]byte, 8)...))
		if at < 0 {
			continue // this KVM has none, or the guest has set it
		}
		bad := bytes.Clone(list[0])
		binary.LittleEndian.PutUint64(bad[at+8:], c.value)
		for range 2 { // a refusal is not forgotten
			var msr *MSRError
			if err := reg.LoadDevices(bad, nil); !errors.As(err, &msr) || msr.Value != c.value || uint64(msr.Index) != c.index {
				t.Errorf("MSR %#x with %#x: %v", c.index, c.value, err)
			}
		}
	}
	load(list[0])
}

// A frequency of the TSC that this host cannot scale to is refused while the state is decoded.
func TestAFrequencyOfTheTSCIsTried(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	s := v.staged
	if s.hasTSCKHz == 0 {
		t.Skip("this KVM has a TSC of one frequency, which it does not tell")
	}
	refused := 0
	for _, khz := range []uint32{1000, 1<<32 - 1} { // without scaling KVM takes no lower one, and no processor scales to the other
		_, want := ioctlValue(v.fd, "KVM_SET_TSC_KHZ", kvmSetTSCKHz, uintptr(khz))
		s.tscKHz = khz
		if err := s.spare.try(s); (err != nil) != (want != nil) || err != nil && !errors.Is(err, ErrState) {
			t.Errorf("%d kHz: %v, and KVM says %v", khz, err, want)
		}
		if want != nil {
			refused++
		}
	}
	if refused == 0 {
		t.Skip("this KVM takes any frequency")
	}
	s.tscKHz = s.hasTSCKHz
	if err := s.spare.try(s); err != nil {
		t.Error("its own:", err)
	}
}
