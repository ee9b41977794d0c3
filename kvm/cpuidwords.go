//go:build linux && amd64

package kvm

import (
	"fmt"
	"math/bits"
	"strings"
)

// The registers of a CPUID leaf.
const (
	eax = iota
	ebx
	ecx
	edx
)

// cpuidWord is a register of a CPUID leaf each bit of which is something that a guest
// may use. (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; KVM's cpuid
// page.)
type cpuidWord struct {
	function, index uint32
	reg             int
	// ignore has the bits that the guest itself changes (by CR4), that describe the topology, or
	// that the creator of a guest adds to KVM's list.
	ignore uint32
	names  string // of bits 0, 1 and so on, as far as they are known; "-" for a bit without a name
}

var cpuidWords = []cpuidWord{
	{0x1, 0, ecx, 1<<24 | 1<<27 | 1<<31, "SSE3 PCLMULQDQ DTES64 MONITOR DS-CPL VMX SMX EIST TM2 SSSE3 CNXT-ID SDBG FMA CX16 xTPR PDCM - PCID DCA SSE4.1 SSE4.2 x2APIC MOVBE POPCNT TSC-deadline AES XSAVE OSXSAVE AVX F16C RDRAND"},
	{0x1, 0, edx, 1 << 28, "FPU VME DE PSE TSC MSR PAE MCE CX8 APIC - SEP MTRR PGE MCA CMOV PAT PSE-36 PSN CLFSH - DS ACPI MMX FXSR SSE SSE2 SS HTT TM - PBE"},
	{0x7, 0, ebx, 0, "FSGSBASE TSC_ADJUST SGX BMI1 HLE AVX2 FDP_EXCPTN SMEP BMI2 ERMS INVPCID RTM PQM FCS MPX PQE AVX512F AVX512DQ RDSEED ADX SMAP AVX512_IFMA - CLFLUSHOPT CLWB PT AVX512PF AVX512ER AVX512CD SHA AVX512BW AVX512VL"},
	{0x7, 0, ecx, 1 << 4, "PREFETCHWT1 AVX512_VBMI UMIP PKU OSPKE WAITPKG AVX512_VBMI2 SHSTK GFNI VAES VPCLMULQDQ AVX512_VNNI AVX512_BITALG TME AVX512_VPOPCNTDQ - LA57 - - - - - RDPID KL BUS_LOCK_DETECT CLDEMOTE - MOVDIRI MOVDIR64B ENQCMD SGX_LC PKS"},
	{0x7, 0, edx, 0, "- SGX_KEYS AVX512_4VNNIW AVX512_4FMAPS FSRM UINTR - - AVX512_VP2INTERSECT SRBDS_CTRL MD_CLEAR RTM_ALWAYS_ABORT - TSX_FORCE_ABORT SERIALIZE HYBRID TSXLDTRK - PCONFIG LBR IBT - AMX-BF16 AVX512_FP16 AMX-TILE AMX-INT8 SPEC_CTRL STIBP L1D_FLUSH ARCH_CAPABILITIES CORE_CAPABILITIES SSBD"},
	{0x7, 1, eax, 0, "SHA512 SM3 SM4 - AVX-VNNI AVX512_BF16 LASS CMPCCXADD ARCH_PERFMON_EXT - FZRM FSRS FSRC - - - - FRED LKGS WRMSRNS - AMX-FP16 HRESET AVX-IFMA - - LAM MSRLIST"},
	{0x7, 1, ebx, 0, ""},
	{0x7, 1, ecx, 0, ""},
	{0x7, 1, edx, 0, "- - - - AVX-VNNI-INT8 AVX-NE-CONVERT - - AMX-COMPLEX - AVX-VNNI-INT16 - - USER_MSR PREFETCHI - - - CET_SSS AVX10"},
	{0x7, 2, edx, 0, "PSFD IPRED_CTRL RRSBA_CTRL DDPD_U BHI_CTRL MCDT_NO"},
	{xcr0CPUIDFn, 0, eax, 0, "x87 SSE AVX BNDREGS BNDCSR opmask ZMM_Hi256 Hi16_ZMM PT PKRU PASID CET_U CET_S HDC UINTR LBR HWP XTILECFG XTILEDATA APX"},
	{xcr0CPUIDFn, 0, edx, 0, ""},
	{xcr0CPUIDFn, 1, eax, 0, "XSAVEOPT XSAVEC XGETBV1 XSAVES XFD"},
	{xcr0CPUIDFn, 1, ecx, 0, ""},
	{xcr0CPUIDFn, 1, edx, 0, ""},
	{0x12, 0, eax, 0, "SGX1 SGX2"},
	{0x14, 0, ebx, 0, ""},
	{0x14, 0, ecx, 0, ""},
	{0x19, 0, ebx, 0, ""},
	{0x1d, 0, eax, 0, ""},
	{0x1e, 0, ebx, 0, ""},
	{0x1e, 1, eax, 0, "AMX-INT8 AMX-BF16 AMX-COMPLEX AMX-FP16 AMX-FP8 - AMX-TF32 AMX-AVX512 AMX-MOVRS"},
	{avx10Leaf, 0, ebx, ^uint32(7 << 16), "- - - - - - - - - - - - - - - - AVX10/128 AVX10/256 AVX10/512"},
	{avx10Leaf, 1, ecx, 0, "- - AVX10_VNNI_INT"},
	{kvmFeatures, 0, eax, 0, "CLOCKSOURCE NOP_IO_DELAY MMU_OP CLOCKSOURCE2 ASYNC_PF STEAL_TIME PV_EOI PV_UNHALT - PV_TLB_FLUSH ASYNC_PF_VMEXIT PV_SEND_IPI POLL_CONTROL PV_SCHED_YIELD ASYNC_PF_INT MSI_EXT_DEST_ID HC_MAP_GPA_RANGE MIGRATION_CONTROL - - - - - - CLOCKSOURCE_STABLE"},
	{0x80000001, 0, ecx, 1 << 1, "LAHF_LM CMP_LEGACY SVM EXTAPIC CR8_LEGACY ABM SSE4A MISALIGNSSE 3DNOWPREFETCH OSVW IBS XOP SKINIT WDT - LWP FMA4 TCE - NODEID_MSR - TBM TOPOEXT PERFCTR_CORE PERFCTR_NB - DBX PERFTSC PERFCTR_LLC MWAITX"},
	{0x80000001, 0, edx, 0, "FPU VME DE PSE TSC MSR PAE MCE CX8 APIC - SYSCALL MTRR PGE MCA CMOV PAT PSE-36 - MP NX - MMXEXT MMX FXSR FXSR_OPT PDPE1GB RDTSCP - LM 3DNOWEXT 3DNOW"},
	{0x80000007, 0, edx, 0, "- - - - - - - - invariant-TSC"},
	{0x80000008, 0, ebx, 0, "CLZERO IRPERF XSAVEERPTR - RDPRU - MBE - MCOMMIT WBNOINVD - - IBPB - IBRS STIBP IBRS_ALWAYS STIBP_ALWAYS IBRS_PREFERRED IBRS_SAME_MODE - - - PPIN SSBD VIRT_SSBD SSB_NO - PSFD BTC_NO IBPB_RET"},
	{0x8000000a, 0, edx, 0, ""},
	{0x8000001f, 0, eax, 0, "SME SEV - SEV_ES SEV_SNP"},
	{0x80000021, 0, eax, 0, ""},
	{0x80000021, 0, ecx, 0, "- TSA_SQ_NO TSA_L1_NO"},
	{0x80000022, 0, eax, 0, ""},
}

const (
	// kvmFeatures is the leaf in which a host's KVM lists what it offers a guest.
	kvmFeatures = 0x40000001
	// avx10Leaf has the version of AVX10 and, in the same register, the widths of its vectors.
	avx10Leaf = 0x24
)

// kvmLeaf returns the leaf in which a guest finds what KVM offers it, 0 if there is none. It
// follows the leaf with KVM's signature, which need not be the first of a hypervisor: a guest may
// be shown the interface of another one before KVM's. (KVM's cpuid page.)
func kvmLeaf(table []CPUIDEntry) (leaf uint32) {
	const base, end, each = kvmFeatures - 1, 0x40010000, 0x100
	const kvmk, vmkv, m = 0x4b4d564b, 0x564b4d56, 0x4d // the signature
	first := false
	for i := range table {
		switch e := &table[i]; {
		case e.Function < base || e.Function >= end || e.Function%each != 0:
		case e.Ebx == kvmk && e.Ecx == vmkv && e.Edx == m && (leaf == 0 || e.Function < leaf):
			leaf = e.Function + 1
		case e.Function == base:
			first = true
		}
	}
	if leaf == 0 && !first {
		return kvmFeatures // a table without signatures
	}
	return leaf
}

// cpuidNumber is a part of a register that counts something: a host must have at
// least as much of it as the guest was told.
type cpuidNumber struct {
	function uint32
	reg      int
	shift    int
	width    int
	name     string
}

var cpuidNumbers = []cpuidNumber{
	{0xa, eax, 0, 8, "version of the performance counters"},
	{0xa, eax, 8, 8, "number of performance counters"},
	{0xa, eax, 16, 8, "width of the performance counters"},
	{0xa, edx, 0, 5, "number of fixed performance counters"},
	{0xa, edx, 5, 8, "width of the fixed performance counters"},
	{avx10Leaf, ebx, 0, 8, "version of AVX10"},
	{0x80000022, ebx, 0, 4, "number of AMD's performance counters"},
	{0x80000008, eax, 0, 8, "bits of a physical address"},
	{0x80000008, eax, 8, 8, "bits of a linear address"},
}

// reg returns a register of an entry.
func reg(e *CPUIDEntry, r int) *uint32 {
	switch r {
	case eax:
		return &e.Eax
	case ebx:
		return &e.Ebx
	case ecx:
		return &e.Ecx
	}
	return &e.Edx
}

// cpuidIndexed is the flag of an entry that answers for its own sub-leaf only.
// (linux/kvm.h, KVM_CPUID_FLAG_SIGNIFCANT_INDEX.)
const cpuidIndexed = 1 << 0

// answers reports whether a vCPU with the entry finds a sub-leaf in it: an entry without the
// flag answers for all of its leaf. (KVM api, "KVM_SET_CPUID2".)
func answers(e *CPUIDEntry, function, index uint32) bool {
	return e.Function == function && (e.Flags&cpuidIndexed == 0 || e.Index == index)
}

// findCPUID returns the entry in which a vCPU with the table finds a sub-leaf, nil if there is
// none: it is the first that answers.
func findCPUID(table []CPUIDEntry, function, index uint32) *CPUIDEntry {
	for i := range table {
		if e := &table[i]; answers(e, function, index) {
			return e
		}
	}
	return nil
}

// find returns the entry in which a guest with the table finds the word, nil if a guest does not
// look there.
//
// An entry that answers for all of a leaf was hardly meant for its later sub-leaves. A guest
// looks at those only where the first sub-leaf says so: leaves 7, 1E and 24 have their number, and without
// XSAVES the components that it could save do not matter.
func (w cpuidWord) find(table []CPUIDEntry) *CPUIDEntry {
	if w.function == kvmFeatures {
		if w.function = kvmLeaf(table); w.function == 0 {
			return nil
		}
	}
	const xsaves = 1 << 3
	e := findCPUID(table, w.function, w.index)
	switch {
	case e == nil, w.index == 0, e.Flags&cpuidIndexed != 0:
	case (w.function == 7 || w.function == 0x1e || w.function == avx10Leaf) && e.Eax < w.index, w.function == xcr0CPUIDFn && w.reg != eax && e.Eax&xsaves == 0:
		return nil
	}
	return e
}

// cpuidValue returns a register, 0 if the table does not have the leaf.
func cpuidValue(table []CPUIDEntry, function, index uint32, r int) uint32 {
	if e := findCPUID(table, function, index); e != nil {
		return *reg(e, r)
	}
	return 0
}

// value reads the number from a table, 0 if the table does not have the leaf.
func (n cpuidNumber) value(table []CPUIDEntry) uint32 {
	return cpuidValue(table, n.function, 0, n.reg) >> n.shift & (1<<n.width - 1)
}

// where names a register as manuals do.
func where(function, index uint32, r int) string {
	leaf := fmt.Sprintf("%X", function)
	switch {
	case function == 7, function == xcr0CPUIDFn, index > 0:
		leaf += fmt.Sprintf(".%d", index)
	}
	return "CPUID " + leaf + " " + [...]string{"EAX", "EBX", "ECX", "EDX"}[r]
}

// bitNames returns the names of the bits of mask.
func (w cpuidWord) bitNames(mask uint32) (list []string) {
	names := strings.Fields(w.names)
	for ; mask != 0; mask &= mask - 1 {
		bit := bits.TrailingZeros32(mask)
		s := fmt.Sprintf("%s bit %d", where(w.function, w.index, w.reg), bit)
		if bit < len(names) && names[bit] != "-" {
			s = names[bit] + " (" + s + ")"
		}
		list = append(list, s)
	}
	return list
}

// missing names, in words, what a guest with the CPUID of table has and a host that can give what
// supported lists lacks. What CPUID says of caches, topology and names is not compared.
func missing(table, supported []CPUIDEntry) (list []string) {
	vendor := func(t []CPUIDEntry) string {
		e := findCPUID(t, 0, 0)
		if e == nil {
			return ""
		}
		var b []byte
		for _, r := range []uint32{e.Ebx, e.Edx, e.Ecx} {
			b = append(b, byte(r), byte(r>>8), byte(r>>16), byte(r>>24))
		}
		return string(b)
	}
	if g, h := vendor(table), vendor(supported); g != h && g != "" && h != "" {
		list = append(list, fmt.Sprintf("the vendor %q, which is %q here (CPUID 0)", g, h))
	}
	for _, w := range cpuidWords {
		e := w.find(table)
		if e == nil {
			continue
		}
		if lacks := *reg(e, w.reg) &^ w.ignore &^ cpuidValue(supported, w.function, w.index, w.reg); lacks != 0 {
			w.function = e.Function
			list = append(list, w.bitNames(lacks)...)
		}
	}
	for _, n := range cpuidNumbers {
		if n.function == 0xa && cpuidNumbers[0].value(table) == 0 {
			continue // no performance counters
		}
		if g, h := n.value(table), n.value(supported); g > h {
			list = append(list, fmt.Sprintf("%d as the %s, which is %d here (%s)", g, n.name, h, where(n.function, 0, n.reg)))
		}
	}
	return append(list, otherLayout(table, supported)...)
}

// otherLayout names the components of the XSAVE area that a guest with table may use and that
// have another place or size in the area here. Such a guest cannot run here, because the area is
// sent byte for byte.
func otherLayout(table, supported []CPUIDEntry) (list []string) {
	for c := uint32(2); c < 63; c++ {
		r, bit := eax, c
		if c >= 32 {
			r, bit = edx, c-32
		}
		g, h := findCPUID(table, xcr0CPUIDFn, c), findCPUID(supported, xcr0CPUIDFn, c)
		if cpuidValue(table, xcr0CPUIDFn, 0, r)>>bit&1 == 0 || g == nil || h == nil {
			continue
		}
		if g.Eax != h.Eax || g.Ebx != h.Ebx {
			list = append(list, fmt.Sprintf("component %d of the XSAVE area as %d bytes at %d, which is %d at %d here (CPUID D.%d)", c, g.Eax, g.Ebx, h.Eax, h.Ebx, c))
		}
	}
	return list
}
