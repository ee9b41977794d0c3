//go:build linux && amd64

package kvm

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gokvm "github.com/bobuhiro11/gokvm/kvm"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
)

// MSRs in which a CPU lists features.
const (
	archCapabilities = 0x10a
	platformInfo     = 0xce
	perfCapabilities = 0x345
)

// told is a CPUID table by which a guest looks at all of them.
var toldOfAll = []CPUIDEntry{{Function: 0}, {Function: 1, Ecx: 1 << 15}, {Function: 7, Flags: cpuidIndexed, Edx: 1 << 29}, {Function: 0xd, Flags: 1, Eax: 7}}

// What a guest was promised by an MSR is compared with what this host's KVM supports while the state is
// decoded, though KVM takes any value: it is refused in words, with nothing applied.
func TestAStateWithAPromiseThatThisHostDoesNotKeepIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		index            uint32
		value, supported uint64
		want             string // "": it is taken
	}{
		"immunity to Meltdown":                    {archCapabilities, 1<<0 | 1<<8, 1 << 8, "RDCL_NO (MSR 0x10a bit 0)"},
		"a newer immunity":                        {archCapabilities, 1 << 62, 1<<61 - 1, "ITS_NO (MSR 0x10a bit 62)"},
		"one without a name":                      {archCapabilities, 1 << 50, 1 << 49, "MSR 0x10a bit 50"},
		"a way to clear buffers":                  {archCapabilities, 1 << 17, 0, "FB_CLEAR"},
		"no more than there is":                   {archCapabilities, 1<<0 | 1<<8, 1<<0 | 1<<3 | 1<<8, ""},
		"a warning of what is not here":           {archCapabilities, 1<<2 | 1<<19, 0, ""},
		"faulting CPUID":                          {platformInfo, 1 << 31, 0, "CPUID_FAULT (MSR 0xce bit 31)"},
		"ratios of frequencies":                   {platformInfo, 1<<31 | 24<<8, 1 << 31, ""},
		"other branch records":                    {perfCapabilities, 5, 6, "5 as the format of branch records, which is 6 here (MSR 0x345)"},
		"branch records where there are none":     {perfCapabilities, 5, 0, "5 as the format of branch records, which is 0 here"},
		"no branch records":                       {perfCapabilities, 0, 5, ""},
		"other PEBS records":                      {perfCapabilities, 3 << 8, 4 << 8, "3 as the format of PEBS records"},
		"writes of a counter's full width":        {perfCapabilities, 1 << 13, 1 << 12, "FW_WRITE"},
		"an LFENCE that waits for all before it":  {0xc0011029, 1 << 1, 0, "LFENCE_SERIALIZE (MSR 0xc0011029 bit 1)"},
		"more machine-check banks":                {msrMCGCap, 32, 10, "32 machine-check banks, of which there are 10 here (MSR 0x179)"},
		"banks that interrupt":                    {msrMCGCap, 10 | 1<<10 | 1<<8, 10 | 1<<8, "MCG_CMCI_P (MSR 0x179 bit 10)"},
		"machine checks of one CPU alone":         {msrMCGCap, 10 | 1<<27, 32 | 1<<8 | 1<<24, "MCG_LMCE_P (MSR 0x179 bit 27)"},
		"fewer banks that can do less":            {msrMCGCap, 3, 32 | 1<<8 | 1<<24, ""},
		"a number of registers that nobody has":   {msrMCGCap, 3 | 6<<16, 32, ""},
		"the revision of a microcode":             {0x8b, 7 << 32, 5 << 32, ""},
		"a host of which that MSR is not known":   {archCapabilities, 1, ^uint64(0), ""},
		"a guest that does not look at that MSR":  {archCapabilities, 1, 0, ""},
		"nor at that of the performance counters": {perfCapabilities, 5, 6, ""},
	} {
		supports := []MSR{{c.index, c.supported}}
		if strings.Contains(name, "not known") {
			supports = []MSR{{0x8b, 1}}
		}
		make := func() (*VCPUState, *vmstate.Registry) {
			s, reg := synthetic(t)
			s.sys.msrs[2], s.sys.supports = c.index, supports
			s.cpuid.n = uint32(copy(s.cpuid.entries[:], toldOfAll))
			if strings.Contains(name, "look") || strings.HasPrefix(name, "nor") {
				s.cpuid.entries[1].Ecx, s.cpuid.entries[2].Edx = 0, 0
			}
			s.msr.entries[2] = gokvm.MSREntry{Index: c.index, Data: c.value}
			return s, reg
		}
		_, reg := make()
		to, toReg := make()
		to.msr.entries[2].Data = 77
		err := toReg.LoadDevices(encode(t, reg), nil)
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		var judged *CPUError
		if !errors.As(err, &judged) || !errors.Is(err, ErrState) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if to.msr.entries[2].Data != 77 {
			t.Errorf("%s: the state was changed", name)
		}
	}
}

// A KVM that takes any value of such an MSR is not asked alone: the guest's own host says by Features, and
// the state itself once more, what it was promised.
func TestAnMSRThatKVMTakesWithAnyValueIsJudgedByWhatKVMSupports(t *testing.T) {
	list, v, load := states(t)
	load(list[0])
	sys := v.vm.sys
	was := sys.supports
	defer func() { sys.supports = was }()
	value, ok := valueOf(was, platformInfo)
	if !ok || value&(1<<31) == 0 {
		t.Skip("this KVM lets no CPUID fault")
	}
	theirs, err := v.vm.DescribeCPU()
	if err != nil {
		t.Fatal(err)
	}
	sys.supports = []MSR{{platformInfo, 0}}
	var judged *CPUError
	if err := v.vm.JudgeCPU(theirs); !errors.As(err, &judged) || !strings.Contains(err.Error(), "CPUID_FAULT (MSR 0xce bit 31)") {
		t.Error("the description:", err)
	}
	reg := &vmstate.Registry{}
	if err := v.vm.Register(reg); err != nil {
		t.Fatal(err)
	}
	want := shows(t, v)
	judged = nil
	if err := reg.LoadDevices(list[0], nil); !errors.As(err, &judged) || !strings.Contains(err.Error(), "CPUID_FAULT") {
		t.Error("the state:", err)
	}
	sameState(t, "refused", shows(t, v), want)
	sys.supports = was
	if err := v.vm.JudgeCPU(theirs); err != nil {
		t.Error("its own host:", err)
	}
}

// A guest that was not warned, because its host had nothing to warn of, is refused where there is
// something. Whether a guest should have been warned by its own host is not this host's affair.
func TestAGuestThatWasNotWarnedIsRefusedWhereThereIsSomethingToWarnOf(t *testing.T) {
	const rsba = 1 << 2
	host := &CPU{Supported: toldOfAll, Features: []MSR{{archCapabilities, rsba}}}
	for name, c := range map[string]struct {
		there, value uint64
		refused      bool
	}{
		"nothing to warn of there":          {1, 0, true},
		"warned all the same":               {1, rsba, false},
		"not warned by whoever made it":     {rsba, 0, false},
		"warned of what there is on either": {rsba, rsba, false},
	} {
		guest := &CPU{Given: toldOfAll, MSRs: []MSR{{archCapabilities, c.value}, {0x277, 6}}, Features: []MSR{{archCapabilities, c.there}}}
		if err := host.Judge(guest); (err != nil) != c.refused || err != nil && !strings.Contains(err.Error(), "RSBA (MSR 0x10a bit 2)") {
			t.Errorf("%s: %v", name, err)
		}
		guest.Given = slices.Clone(toldOfAll)
		guest.Given[2].Edx = 0
		if err := host.Judge(guest); err != nil {
			t.Errorf("%s, to a guest that does not look: %v", name, err)
		}
	}
}

// What hosts have in common by MSRs promises what all of them promise and nothing else, warns of what any
// warns of, is judged to fit each of them, and is the same whichever of them is asked.
func TestFeaturesThatHostsHaveInCommonFitEachOfThem(t *testing.T) {
	r := rand.New(rand.NewPCG(21, 22))
	random := func() *CPU {
		c := &CPU{Supported: toldOfAll}
		for _, f := range featureMSRs {
			c.Features = append(c.Features, MSR{f.index, (r.Uint64() | r.Uint64()) & f.common(^uint64(0), ^uint64(0))})
		}
		return c
	}
	for n := range 2000 {
		a, b, d := random(), random(), random()
		ab := commonFeatures(a.Features, []*CPU{b, d})
		if ba := commonFeatures(d.Features, []*CPU{a, b}); !slices.Equal(ab, ba) {
			t.Fatalf("triple %d: %x and %x", n, ab, ba)
		}
		for i, f := range featureMSRs {
			x, y, z := a.Features[i].Value, b.Features[i].Value, d.Features[i].Value
			v, ok := valueOf(ab, f.index)
			if ok == f.chosen {
				t.Fatalf("triple %d, MSR %#x, which a VMM chooses (%v), is there: %v", n, f.index, f.chosen, ok)
			}
			if ok && (v&f.promises != x&y&z&f.promises || v&f.warns != (x|y|z)&f.warns) {
				t.Fatalf("triple %d, MSR %#x: %#x of %#x, %#x and %#x", n, f.index, v, x, y, z)
			}
		}
		for _, from := range []*CPU{a, b, d} {
			guest := &CPU{Given: toldOfAll, Supported: toldOfAll, MSRs: ab, Features: from.Features}
			for _, host := range []*CPU{a, b, d} {
				if err := host.Judge(guest); err != nil {
					t.Fatalf("triple %d: %v", n, err)
				}
			}
		}
		if less := commonFeatures(a.Features, []*CPU{{}}); slices.ContainsFunc(less, func(m MSR) bool { return m.Value&featureOf(m.Index).promises != 0 }) {
			t.Fatalf("%x is promised of a host that says nothing", less)
		}
	}
}

// A guest is created with the features that it is given, whichever of them its CPU has.
func TestAGuestIsCreatedWithTheFeaturesThatHostsHaveInCommon(t *testing.T) {
	require.Usable(t, require.KVM, Probe)
	here, err := ReadCPU()
	if err != nil {
		t.Fatal(err)
	}
	if _, known := valueOf(here.Features, platformInfo); !known {
		t.Skip("this KVM tells of no features by MSRs")
	}
	for _, others := range [][]*CPU{nil, {{}}, {here}} {
		list, err := CommonFeatures(others...)
		if err != nil {
			t.Fatal(err)
		}
		vm, err := Create(Config{Memory: PageSize, VCPUs: 2, Features: list})
		if err != nil {
			t.Fatalf("%x: %v", list, err)
		}
		want, _ := valueOf(list, platformInfo)
		for _, v := range vm.VCPUs() {
			if got, err := v.MSR(platformInfo); err != nil || got != want {
				t.Errorf("vCPU %d has %#x, %v; want %#x", v.Index(), got, err, want)
			}
		}
		theirs, err := vm.DescribeCPU()
		if err := errors.Join(err, vm.JudgeCPU(theirs), vm.Close()); err != nil {
			t.Error(err)
		}
	}
	var msr *MSRError
	for _, m := range []MSR{{0x10, 5}, {0x277, 6}} {
		if vm, err := Create(Config{Memory: PageSize, Features: []MSR{m}}); !errors.As(err, &msr) || msr.Index != m.Index {
			if vm != nil {
				vm.Close()
			}
			t.Errorf("MSR %#x, which lists no features: %v", m.Index, err)
		}
	}
}

// Kernels before 6.0 do not tell a host of performance counters, say, before the vCPU has its CPUID. A vCPU that
// is adopted without it has them once it gets it, and takes them in a state before.
func TestAnMSRThatComesWithTheCPUIDIsSavedAndTaken(t *testing.T) {
	list, v, load := states(t)
	const sysenterESP = 0x175 // stands for one of those
	value := func(s *VCPUState) uint64 { v, _ := s.savedMSR(sysenterESP); return v }
	hide := func() {
		for _, s := range []*VCPUState{v.state, v.staged, v.shot.state} {
			s.msrs = slices.DeleteFunc(s.msrs, func(i uint32) bool { return i == sysenterESP })
		}
	}
	hide()
	load(list[3])
	if got := value(shows(t, v)); got != 0x99999000 {
		t.Errorf("%#x was taken, want what the state has", got)
	}

	fresh, err := Create(Config{VCPUs: 1, Memory: PageSize})
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	v = fresh.vcpus[0]
	hide()
	v.state.hasCPUID = nil // as of a vCPU whose host sets it
	if err := errors.Join(v.save(), v.state.writeMSR(v.fd, sysenterESP, 0x1000), v.save()); err != nil {
		t.Fatal(err)
	}
	if got := value(v.state); got != 0x1000 {
		t.Errorf("%#x is saved, want what the vCPU has", got)
	}
}
