//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
)

// refusedWhileDecoded fails unless a state is refused before anything is restored, with
// an error that says what is wrong.
func refusedWhileDecoded(t *testing.T, x *adopted, state []byte, words string) {
	t.Helper()
	before := x.save()
	err := x.stage(state)
	if err == nil {
		t.Errorf("decoded without an error; restored: %v", x.reg.Commit())
		return
	}
	if !errors.Is(err, kvm.ErrState) || !strings.Contains(err.Error(), words) {
		t.Errorf("refused with %q, want %q in it and ErrState", err, words)
	}
	// Nothing is left of it: the VM's own state still loads.
	x.load(before)
}

func TestACPUThatHasMoreIsRefusedWhileItIsDecoded(t *testing.T) {
	for _, c := range []struct {
		function, index uint32
		reg             func(*streamCPUID) *uint32
		name            string
	}{
		{1, 0, func(e *streamCPUID) *uint32 { return &e.Ecx }, "CPUID 1 ECX bit"},
		{1, 0, func(e *streamCPUID) *uint32 { return &e.Edx }, "CPUID 1 EDX bit"},
		{7, 0, func(e *streamCPUID) *uint32 { return &e.Ebx }, "CPUID 7.0 EBX bit"},
		{7, 0, func(e *streamCPUID) *uint32 { return &e.Ecx }, "CPUID 7.0 ECX bit"},
		{7, 0, func(e *streamCPUID) *uint32 { return &e.Edx }, "CPUID 7.0 EDX bit"},
		{0xd, 0, func(e *streamCPUID) *uint32 { return &e.Eax }, "CPUID D.0 EAX bit"},
		{0xd, 0, func(e *streamCPUID) *uint32 { return &e.Edx }, "CPUID D.0 EDX bit"},
		{0x80000001, 0, func(e *streamCPUID) *uint32 { return &e.Ecx }, "CPUID 80000001 ECX bit"},
		{0x80000001, 0, func(e *streamCPUID) *uint32 { return &e.Edx }, "CPUID 80000001 EDX bit"},
		{0x40000001, 0, func(e *streamCPUID) *uint32 { return &e.Eax }, "CPUID 40000001 EAX bit"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
			state := withCPUID(t, a, a.save(), c.function, c.index, func(e *streamCPUID) { *c.reg(e) = ^uint32(0) })
			refusedWhileDecoded(t, b, state, c.name)
		})
	}
}

func TestWiderPhysicalAddressesAreRefusedWhileDecoded(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	state := withCPUID(t, a, a.save(), 0x80000008, 0, func(e *streamCPUID) { e.Eax++ })
	refusedWhileDecoded(t, b, state, "bits of a physical address")
}

func TestAnotherVendorIsRefusedWhileDecoded(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	state := withCPUID(t, a, a.save(), 0, 0, func(e *streamCPUID) { e.Ebx, e.Edx, e.Ecx = 0x746e6543, 0x48727561, 0x736c7561 })
	refusedWhileDecoded(t, b, state, "CentaurHauls")
}

// What says of a CPU how it is built, and not what it can do, does not matter.
func TestACPUThatIsMerelyBuiltOtherwiseIsAccepted(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	state := withCPUID(t, a, a.save(), 1, 0, func(e *streamCPUID) {
		e.Eax ^= 0x10 // another model
		e.Edx |= 1 << 28
	})
	b.load(state)
}

// place returns where the values of XCR0 and of the XSAVE area's header are in a state
// of one vCPU.
func place(t *testing.T, state []byte) (xcr0, header int) {
	t.Helper()
	for i := 0; i+20 < len(state); i++ {
		// A count of one, XCR0, its value, the length of the XSAVE area.
		v, n := binary.BigEndian.Uint64(state[i+8:]), binary.BigEndian.Uint32(state[i+16:])
		if bytes.HasPrefix(state[i:], []byte{0, 0, 0, 1, 0, 0, 0, 0}) && v&1 != 0 && v>>32 == 0 && n >= 576 && n <= 64<<10 {
			return i + 8, i + 20 + 512
		}
	}
	t.Fatal("no XCR0 in the state")
	return 0, 0
}

func TestWhatKVMRefusesIsRefusedWhileDecoded(t *testing.T) {
	for name, spoil := range map[string]func(t *testing.T, state []byte){
		"XCR0 with a component that no CPU has": func(t *testing.T, state []byte) {
			at, _ := place(t, state)
			state[at] |= 0x40 // bit 62
		},
		"XCR0 with half of AVX-512": func(t *testing.T, state []byte) {
			at, _ := place(t, state)
			state[at+7] = state[at+7]&^0xe0 | 0x20
		},
		"XSTATE_BV beyond XCR0": func(t *testing.T, state []byte) {
			_, at := place(t, state)
			state[at+7] |= 0x40
		},
		"the XSAVE header's reserved bytes": func(t *testing.T, state []byte) {
			_, at := place(t, state)
			state[at+40] = 1
		},
		"MXCSR": func(t *testing.T, state []byte) {
			_, at := place(t, state)
			state[at-512+24+3] = 0x80
			state[at] |= 3
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
			state := a.save()
			good := bytes.Clone(state)
			spoil(t, state)
			refusedWhileDecoded(t, b, state, "")
			b.load(good) // and what was taken in between hides nothing
			refusedWhileDecoded(t, b, state, "")
			b.load(good)
		})
	}
}

// An MSR's value is KVM's affair: it is asked, and not with the guest's own vCPU.
func TestAnMSRThatKVMRefusesIsRefusedWhileDecoded(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	asked := 0
	for index, c := range map[uint32]struct{ valid, bad uint64 }{
		0x277: {0x0606060606060606, 0x0202020202020202}, // PAT: no such memory type
		0x2ff: {0xc06, 0xc02},                           // MTRRs' default, likewise
		0x250: {0x0606060606060606, 0x0202020202020202}, // a fixed range
		0x400: {^uint64(0), 5},                          // MC0_CTL: all or nothing
		0x48:  {1, 1 << 40},                             // SPEC_CTRL: reserved
		0x1d9: {2, 1 << 40},                             // DEBUGCTL: reserved
	} {
		if writeMSR(a.fds[0], index, c.bad) || !writeMSR(a.fds[0], index, c.valid) {
			writeMSR(a.fds[0], index, c.valid)
			continue // this KVM takes anything, or has none
		}
		state := a.save()
		le := binary.LittleEndian
		old := le.AppendUint64(le.AppendUint64(nil, uint64(index)), c.valid)
		bad := le.AppendUint64(le.AppendUint64(nil, uint64(index)), c.bad)
		if !bytes.Contains(state, old) {
			continue // it is not part of the state
		}
		asked++
		b.load(state) // what was taken before hides nothing
		refusedWhileDecoded(t, b, bytes.Replace(state, old, bad, 1), fmt.Sprintf("MSR %#x", index))
	}
	if asked == 0 {
		t.Skip("this KVM takes any value")
	}
	t.Logf("%d MSRs", asked)
}

func TestTheOtherHostsDescriptionIsJudgedInWords(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	ours, err := a.DescribeCPU()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.JudgeCPU(ours); err != nil {
		t.Error("a host like this one:", err)
	}
	offer, judge, err := a.MatchCPU()
	if err != nil || !bytes.Equal(offer, ours) || judge(ours) != nil {
		t.Errorf("MatchCPU is something else: %v", err)
	}
	var other kvm.CPU
	if err := other.UnmarshalBinary(ours); err != nil {
		t.Fatal(err)
	}
	other.XSaveSize += 4096
	other.TSCKHz *= 2
	for i := range other.Given {
		if e := &other.Given[i]; e.Function == 7 && e.Index == 0 {
			e.Ecx |= 1 << 23 // KL
		}
	}
	theirs, err := other.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if judge(theirs) == nil {
		t.Error("MatchCPU finds nothing against a host with more")
	}
	err = b.JudgeCPU(theirs)
	var judged *kvm.CPUError
	if !errors.As(err, &judged) || !errors.Is(err, kvm.ErrState) {
		t.Fatal("a host with more:", err)
	}
	for _, words := range []string{"KL (CPUID 7.0 ECX bit 23)", "XSAVE area of"} {
		if !strings.Contains(err.Error(), words) {
			t.Errorf("%q lacks %q", err, words)
		}
	}
	if mine, err := b.CPU(); err != nil || !mine.TSCScaling && mine.TSCKHz != 0 && !strings.Contains(judged.Error(), "cannot be scaled") {
		t.Errorf("%v; %q says nothing of the TSC", err, judged)
	}
}

func TestADescriptionIsTheSameOnTheOtherSideAndNoneIsTakenForOne(t *testing.T) {
	ours, err := newAdopted(t, 1, nil).DescribeCPU()
	if err != nil {
		t.Fatal(err)
	}
	var c kvm.CPU
	if err := c.UnmarshalBinary(ours); err != nil {
		t.Fatal(err)
	}
	if again, err := c.MarshalBinary(); err != nil || !bytes.Equal(again, ours) {
		t.Error("the description has changed on its way:", err)
	}
	for n := range len(ours) {
		if err := c.UnmarshalBinary(ours[:n]); !errors.Is(err, kvm.ErrState) {
			t.Fatalf("%d of %d bytes: %v", n, len(ours), err)
		}
	}
	if err := c.UnmarshalBinary(append(ours, 0)); !errors.Is(err, kvm.ErrState) {
		t.Error("a byte too many:", err)
	}
}

func FuzzCPU(f *testing.F) {
	small := &kvm.CPU{Supported: []kvm.CPUIDEntry{{Function: 1, Ecx: 7}}, Given: []kvm.CPUIDEntry{{Function: 7, Flags: 1, Ebx: 9}}, XSaveSize: 4096, TSCKHz: 1, TSCScaling: true}
	seed, err := small.MarshalBinary()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	small.MSRs = []kvm.MSR{{Index: 0x10a, Value: 1}}
	if seed, err = small.MarshalBinary(); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	small.Features = []kvm.MSR{{Index: 0xce, Value: 1 << 31}}
	if seed, err = small.MarshalBinary(); err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, p []byte) {
		var c kvm.CPU
		if c.UnmarshalBinary(p) != nil {
			return
		}
		again, err := c.MarshalBinary()
		if err != nil || !bytes.Equal(again, p) {
			t.Fatal("what was accepted is written otherwise:", err)
		}
		small.Judge(&c)
		c.Judge(small)
	})
}

// A guest that is created with what two hosts have in common is taken by both.
func TestTheCommonCPUIDIsTakenByBothHosts(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	here, err := kvm.ReadCPU()
	if err != nil {
		t.Fatal(err)
	}
	there := *here
	there.Supported = append([]kvm.CPUIDEntry(nil), here.Supported...)
	const fpuToSSE2 = 0x0783fbff
	for i := range there.Supported {
		switch e := &there.Supported[i]; {
		case e.Function == 1:
			e.Edx &= fpuToSSE2
			e.Ecx = 1 << 31
		case e.Function == 7:
			e.Ebx, e.Ecx, e.Edx = 0, 1<<28, 0
		case e.Function == 0x80000008:
			e.Eax -= 2
		}
	}
	vm, err := kvm.Create(kvm.Config{Memory: 1 << 20, VCPUs: 2, CPUID: func(i int) ([]kvm.CPUIDEntry, error) {
		return kvm.CommonCPUID(i, &there)
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	guest, err := vm.CPU()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(there.Judge(guest), here.Judge(guest)); err != nil {
		t.Error(err)
	}
	table, err := vm.VCPUs()[1].CPUID()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range table {
		if e.Function == 1 && e.Ebx>>24 != 1 {
			t.Errorf("vCPU 1 has APIC ID %d", e.Ebx>>24)
		}
		if e.Function == 7 && e.Index == 0 && e.Ebx != 0 {
			t.Errorf("the guest is told of %#x in CPUID 7 EBX, which the other host lacks", e.Ebx)
		}
	}
	full, err := kvm.SupportedCPUID(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := there.Judge(&kvm.CPU{Given: full}); err == nil {
		t.Error("the lesser host takes a guest that has all of this one")
	}
	there.Supported[0].Ebx ^= 1
	if _, err := kvm.CommonCPUID(0, &there); !errors.As(err, new(*kvm.CPUError)) {
		t.Error("another vendor:", err)
	}
}

func TestMoreVCPUsThanAPICIDsAreAnErrorAtCreation(t *testing.T) {
	require.Usable(t, require.KVM, kvm.Probe)
	if vm, err := kvm.Create(kvm.Config{Memory: 1 << 20, VCPUs: 256}); err == nil || !strings.Contains(err.Error(), "APIC ID") {
		if vm != nil {
			vm.Close()
		}
		t.Error("256 vCPUs:", err)
	}
	for _, i := range []int{-1, 255, 256, 1 << 20} {
		if _, err := kvm.SupportedCPUID(i); err == nil {
			t.Errorf("a CPUID for vCPU %d", i)
		}
	}
	x := newAdopted(t, 2, nil)
	table, err := kvm.SupportedCPUID(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.vcpus[1].SetCPUID(table); !errors.Is(err, kvm.ErrState) {
		t.Error("the APIC ID of another vCPU:", err)
	}
}

// An adopted vCPU has the number that its host gave it, of which the state of a local APIC keeps 8 bits.
func TestAnAdoptedVCPUWhoseAPICIDDoesNotFitIsAnError(t *testing.T) {
	x := newAdoptedWith(t, kvm.AttachConfig{DirtyRing: kvm.AutoRing}, 1, nil)
	run := make([]byte, 3*kvm.PageSize)
	for id, fits := range map[uintptr]bool{254: true, 255: false, 300: false} {
		fd, err := rawValue(x.fd, reqCreateVCPU, id)
		if err != nil {
			t.Skip(err)
		}
		defer unix.Close(fd)
		before := leaks.Now(t)
		if _, err := x.AddVCPU(uintptr(fd), run); (err == nil) != fits || err != nil && !strings.Contains(err.Error(), "APIC ID") {
			t.Errorf("APIC ID %d: %v", id, err)
		}
		if !fits {
			before.Check(t, "a vCPU that was refused") // a dirty ring, for one
		}
	}
}

// What KVM offers a guest is where its signature is. A guest that was told of Hyper-V's interface too, which
// comes first, or of that alone, is not taken for one with KVM's features because of what it says there.
func TestAGuestThatIsToldOfAnotherHypervisorIsJudgedByWhatKVMOffersIt(t *testing.T) {
	const kvmAt, features = 0x40000000, 0x40000001
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	table, err := kvm.SupportedCPUID(0)
	must(t, err)
	host, err := kvm.ReadCPU()
	must(t, err)
	var moved []kvm.CPUIDEntry
	lacks := uint32(0) // features that KVM has not here
	for i := range table {
		switch e := &table[i]; e.Function {
		case kvmAt:
			k := *e
			k.Function, k.Eax = kvmAt+0x100, features+0x100
			moved = append(moved, k)
			e.Eax, e.Ebx, e.Ecx, e.Edx = 0x40000005, 0x7263694d, 0x666f736f, 0x76482074 // Microsoft Hv
		case features:
			k := *e
			k.Function = features + 0x100
			moved = append(moved, k)
			e.Eax, e.Ebx, e.Ecx, e.Edx = 0x31237648, 0, 0, 0 // Hv#1
		}
	}
	for _, e := range host.Supported {
		if e.Function == features {
			lacks = ^e.Eax
		}
	}
	if len(moved) != 2 {
		t.Fatalf("KVM's leaves are %+v", moved)
	}
	both := append(slices.Clone(table), moved...)
	for name, table := range map[string][]kvm.CPUIDEntry{"both": both, "Hyper-V alone": table} {
		if err := errors.Join(a.vcpus[0].SetCPUID(table), b.vcpus[0].SetCPUID(table)); err != nil {
			t.Logf("%s: KVM does not take it: %v", name, err)
			continue
		}
		b.load(a.save())
		if err := host.Judge(&kvm.CPU{Given: table, Supported: host.Supported}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for bit := range uint32(32) {
		if lacks>>bit&1 == 0 {
			continue
		}
		other := slices.Clone(both)
		other[len(other)-1].Eax |= 1 << bit
		err := host.Judge(&kvm.CPU{Given: other, Supported: host.Supported})
		var judged *kvm.CPUError
		if want := fmt.Sprintf("CPUID 40000101 EAX bit %d", bit); !errors.As(err, &judged) || len(judged.Missing) != 1 || !strings.Contains(err.Error(), want) {
			t.Errorf("bit %d: %v, want %s", bit, err, want)
		}
	}
}

// A vCPU that was given its CPUID table here has its own APIC ID in it, and takes no state that says
// otherwise.
func TestAStateWithAnotherAPICIDIsRefusedWhileItIsDecoded(t *testing.T) {
	a, b := newAdopted(t, 1, nil), newAdopted(t, 1, nil)
	state := withCPUID(t, a, a.save(), 1, 0, func(e *streamCPUID) { e.Ebx ^= 1 << 24 })
	refusedWhileDecoded(t, b, state, "APIC ID 1 in CPUID 1 of the vCPU whose ID is 0")
}
