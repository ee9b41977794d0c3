//go:build linux && amd64

package kvm

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// randomHost returns what KVM might support on a host: all leaves that are compared, few of whose
// bits are missing, or some of them. Its entries are KVM's: whatever has sub-leaves has the flag.
func randomHost(r *rand.Rand) *CPU {
	sparse := func() uint32 { return r.Uint32() | r.Uint32() | r.Uint32() }
	add := func(list []CPUIDEntry, function, index uint32) []CPUIDEntry {
		if findCPUID(list, function, index) != nil || function != 0 && r.IntN(10) == 0 {
			return list
		}
		e := CPUIDEntry{Function: function, Index: index, Eax: sparse(), Ebx: sparse(), Ecx: sparse(), Edx: sparse()}
		switch function {
		case 0:
			e.Ebx, e.Edx, e.Ecx = 0x68747541, 0x69746e65, 0x444d4163
			if r.IntN(8) == 0 {
				e.Ebx, e.Edx, e.Ecx = 0x756e6547, 0x49656e69, 0x6c65746e
			}
		case 7, xcr0CPUIDFn, 0x12, 0x14, 0x1d, 0x1e, 0x24:
			e.Flags = cpuidIndexed
		}
		if function == xcr0CPUIDFn && index > 1 { // a component of the XSAVE area
			e.Eax, e.Ebx = 64, 576+64*index
			if r.IntN(60) == 0 {
				e.Ebx += 64
			}
		}
		return append(list, e)
	}
	list := add(nil, 0, 0)
	for _, w := range cpuidWords {
		list = add(list, w.function, w.index)
	}
	for _, n := range cpuidNumbers {
		list = add(list, n.function, 0)
	}
	for c := uint32(2); c < 20; c++ {
		list = add(list, xcr0CPUIDFn, c)
	}
	return &CPU{Supported: list}
}

// compared returns a table's bits and numbers that are compared, in their order.
func compared(table []CPUIDEntry) (list []uint32) {
	for _, w := range cpuidWords {
		list = append(list, cpuidValue(table, w.function, w.index, w.reg)&^w.ignore)
	}
	for _, n := range cpuidNumbers {
		list = append(list, n.value(table))
	}
	return list
}

// What two hosts have in common is taken by both, has all that both have and nothing that one of
// them lacks, is the same whichever of them is asked, and has that in common with each of them.
func TestWhatTwoHostsHaveInCommonIsAllThatBothHave(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	taken, refused := 0, 0
	for n := range 2000 {
		a, b := randomHost(r), randomHost(r)
		ab, err := common(slices.Clone(a.Supported), []*CPU{b})
		ba, err2 := common(slices.Clone(b.Supported), []*CPU{a})
		if (err == nil) != (err2 == nil) {
			t.Fatalf("pair %d: one host says %v, the other %v", n, err, err2)
		}
		if err != nil {
			var judged *CPUError
			if !errors.As(err, &judged) || slices.ContainsFunc(judged.Missing, func(s string) bool {
				return !strings.HasPrefix(s, "the vendor") && !strings.HasPrefix(s, "component ")
			}) {
				t.Fatalf("pair %d has no common ground: %v", n, err)
			}
			refused++
			continue
		}
		taken++
		guest := &CPU{Given: ab}
		if err := errors.Join(a.Judge(guest), b.Judge(guest)); err != nil {
			t.Fatalf("pair %d: a host refuses what both have: %v", n, err)
		}
		have, first, second := compared(ab), compared(a.Supported), compared(b.Supported)
		if !slices.Equal(have, compared(ba)) {
			t.Fatalf("pair %d: the two hosts differ in what they have in common", n)
		}
		for i := range have {
			want := first[i] & second[i]
			if i >= len(cpuidWords) {
				want = min(first[i], second[i])
			}
			if have[i] != want {
				t.Fatalf("pair %d, place %d: %#x of %#x and %#x", n, i, have[i], first[i], second[i])
			}
		}
		for _, host := range []*CPU{a, b, {Supported: ab}} {
			again, err := common(slices.Clone(ab), []*CPU{host})
			if err != nil || !slices.Equal(again, ab) {
				t.Fatalf("pair %d: what they have in common is less with one of them: %v", n, err)
			}
		}
	}
	if taken == 0 || refused == 0 {
		t.Errorf("%d pairs with common ground and %d without", taken, refused)
	}
}

// A table need not be KVM's: where its entries answer for more sub-leaves than one, what is left of it
// is taken by both hosts all the same.
func TestWhatIsLeftOfATableWithoutFlagsIsTaken(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	taken := 0
	for n := range 2000 {
		a, b := randomHost(r), randomHost(r)
		table := slices.Clone(a.Supported)
		for i := range table {
			if r.IntN(3) == 0 {
				table[i].Flags = 0
			}
		}
		r.Shuffle(len(table), func(i, j int) { table[i], table[j] = table[j], table[i] })
		left, err := common(table, []*CPU{a, b})
		if err != nil {
			continue
		}
		taken++
		guest := &CPU{Given: slices.Clone(left)}
		if err := errors.Join(a.Judge(guest), b.Judge(guest)); err != nil {
			t.Fatalf("table %d: %v", n, err)
		}
		if again, err := common(left, []*CPU{a, b}); err != nil || !slices.Equal(again, guest.Given) {
			t.Fatalf("table %d: there is less left of what was left: %v", n, err)
		}
	}
	if taken == 0 {
		t.Error("nothing is ever left")
	}
}

// A vCPU finds a sub-leaf in the first entry that answers for it, and so does the comparison: an entry
// without the flag answers for all of its leaf.
func TestAFeatureIsFoundWhereAVCPUFindsIt(t *testing.T) {
	host := &CPU{Supported: []CPUIDEntry{
		{Function: 7, Flags: cpuidIndexed, Eax: 2, Ebx: 1},
		{Function: 7, Index: 1, Flags: cpuidIndexed, Eax: 1 << 4},
		{Function: xcr0CPUIDFn, Flags: cpuidIndexed, Eax: 7},
		{Function: xcr0CPUIDFn, Index: 1, Flags: cpuidIndexed, Eax: 7},
	}}
	for name, c := range map[string]struct {
		table []CPUIDEntry
		want  string // "": the host takes it
	}{
		"leaf 7 under another index":         {[]CPUIDEntry{{Function: 7, Index: 9, Ebx: 1 << 8}}, "BMI2"},
		"and before the one that is meant":   {[]CPUIDEntry{{Function: 7, Index: 9, Ebx: 1 << 8}, {Function: 7, Flags: cpuidIndexed}}, "BMI2"},
		"and behind it, which is not found":  {[]CPUIDEntry{{Function: 7, Flags: cpuidIndexed}, {Function: 7, Index: 9, Ebx: 1 << 8}}, ""},
		"for a later sub-leaf behind it":     {[]CPUIDEntry{{Function: 7, Flags: cpuidIndexed, Eax: 1}, {Function: 7, Index: 9, Eax: 1<<5 | 1}}, "AVX512_BF16"},
		"a leaf 7 that has no sub-leaves":    {[]CPUIDEntry{{Function: 7, Ebx: 1}}, ""},
		"a leaf 7 that says it has some":     {[]CPUIDEntry{{Function: 7, Eax: 1, Ebx: 1}}, "CPUID 7.1 EBX bit 0"},
		"XCR0 under another index":           {[]CPUIDEntry{{Function: xcr0CPUIDFn, Index: 5, Eax: 0x207}}, "PKRU"},
		"XCR0's entry for the other ones":    {[]CPUIDEntry{{Function: xcr0CPUIDFn, Eax: 7, Ecx: 832}}, ""},
		"with the flag, for its own index":   {[]CPUIDEntry{{Function: 7, Index: 9, Flags: cpuidIndexed, Ebx: 1 << 8}}, ""},
		"a leaf without any, under an index": {[]CPUIDEntry{{Function: 0x80000001, Index: 3, Edx: 1 << 31}}, "3DNOW"},
	} {
		err := host.Judge(&CPU{Given: c.table})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// What a leaf tells of a feature's extent, by a sub-leaf, a width or a number, is compared as the features are.
func TestAHostThatHasLessOfAFeatureIsToldApart(t *testing.T) {
	for want, c := range map[string]struct{ guest, host CPUIDEntry }{
		"AVX10/512 (CPUID 24 EBX bit 18)": {
			CPUIDEntry{Function: 0x24, Flags: cpuidIndexed, Ebx: 7<<16 | 1}, CPUIDEntry{Function: 0x24, Flags: cpuidIndexed, Ebx: 3<<16 | 1}},
		"2 as the version of AVX10, which is 1 here": {
			CPUIDEntry{Function: 0x24, Flags: cpuidIndexed, Ebx: 7<<16 | 2}, CPUIDEntry{Function: 0x24, Flags: cpuidIndexed, Ebx: 7<<16 | 1}},
		"AVX10_VNNI_INT (CPUID 24.1 ECX bit 2)": {
			CPUIDEntry{Function: 0x24, Index: 1, Flags: cpuidIndexed, Ecx: 1 << 2}, CPUIDEntry{Function: 0x24, Index: 1, Flags: cpuidIndexed}},
		"AMX-FP8 (CPUID 1E.1 EAX bit 4)": {
			CPUIDEntry{Function: 0x1e, Index: 1, Flags: cpuidIndexed, Eax: 0x1f}, CPUIDEntry{Function: 0x1e, Index: 1, Flags: cpuidIndexed, Eax: 0xf}},
		"TSA_L1_NO (CPUID 80000021 ECX bit 2)": {
			CPUIDEntry{Function: 0x80000021, Ecx: 1 << 2}, CPUIDEntry{Function: 0x80000021, Ecx: 1 << 1}},
		"6 as the number of AMD's performance counters, which is 4 here": {
			CPUIDEntry{Function: 0x80000022, Ebx: 6}, CPUIDEntry{Function: 0x80000022, Ebx: 4}},
	} {
		host := &CPU{Supported: []CPUIDEntry{c.host}}
		table := []CPUIDEntry{c.guest}
		if err := host.Judge(&CPU{Given: table}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		less, err := common(table, []*CPU{host})
		if err := errors.Join(err, host.Judge(&CPU{Given: less})); err != nil {
			t.Errorf("what both have of %s: %v", want, err)
		}
	}
}
