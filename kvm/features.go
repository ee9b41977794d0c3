//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"
	"unsafe"

	gokvm "github.com/bobuhiro11/gokvm/kvm"
)

// featureMSR is an MSR in which a CPU lists features, as it does by CPUID. KVM lets a VMM give a
// vCPU any value of some of them, also one that promises what this host does not keep, such as
// that an attack does not work. (Intel SDM volume 4; Linux, Documentation/admin-guide/hw-vuln.)
type featureMSR struct {
	index uint32
	// promises has the bits each of which is something that a guest may count on.
	promises uint64
	// warns has the bits each of which is something that a guest has to guard against: a guest
	// that was not warned counts on it as well.
	warns uint64
	// formats has numbers that say how something is laid out. A host has to have the same one, unless
	// the guest was told 0, which is nothing.
	formats []field
	// counts has numbers of something, of which a host has to have as many.
	counts []field
	// chosen says that whoever makes the guest chooses the value by a call of KVM's own, and that it is not
	// among what several hosts have in common.
	chosen bool
	// A guest looks at the MSR if the bit of this word of its CPUID is set; 0 as the bit: it always may.
	seen cpuidWord
	bit  uint32

	names string // of bits 0, 1 and so on, as far as they are known; "-" for a bit without a name
}

// field is a number in some bits of a register.
type field struct {
	shift, width int
	name         string
}

func (f field) mask() uint64 { return (1<<f.width - 1) << f.shift }

func (f field) of(v uint64) uint64 { return v >> f.shift & (1<<f.width - 1) }

// Bits of the capabilities by which a return may be predicted from elsewhere than from the stack of
// returns.
const warnsOfReturns = 1<<2 | 1<<19

// featureMSRs are those of KVM's list of such MSRs whose values KVM does not compare with what the host
// can do, or that several hosts are to have in common. Not among them: the revision of the microcode,
// which a guest goes on seeing as it was told, and the MSRs that list features of nested
// virtualization, which a guest does not get.
var featureMSRs = []featureMSR{
	{
		index: 0x10a, promises: ^uint64(warnsOfReturns), warns: warnsOfReturns, seen: cpuidWord{function: 7, reg: edx}, bit: 1 << 29,
		names: "RDCL_NO IBRS_ALL RSBA SKIP_L1DFL_VMENTRY SSB_NO MDS_NO IF_PSCHANGE_MC_NO TSX_CTRL TAA_NO MCU_CONTROL MISC_PACKAGE_CTLS " +
			"ENERGY_FILTERING_CTL DOITM SBDR_SSDP_NO FBSDP_NO PSDP_NO MCU_ENUMERATION FB_CLEAR FB_CLEAR_CTRL RRSBA BHI_NO XAPIC_DISABLE_STATUS " +
			"MCU_EXTENDED_SERVICE OVERCLOCKING_STATUS PBRSB_NO GDS_CTRL GDS_NO RFDS_NO RFDS_CLEAR IGN_UMONITOR_SUPPORT MON_UMON_MITG_SUPPORT " +
			"- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - ITS_NO",
	},
	{
		// The rest are ratios of frequencies, which the VMM that makes the guest chooses.
		index: 0xce, promises: 1 << 31,
		names: "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - CPUID_FAULT",
	},
	{
		index: 0x345, promises: ^uint64(0x3f | 0xf00), seen: cpuidWord{function: 1, reg: ecx}, bit: 1 << 15,
		formats: []field{{0, 6, "format of branch records"}, {8, 4, "format of PEBS records"}},
		names:   "- - - - - - PEBS_TRAP PEBS_ARCH_REG - - - - FREEZE_WHILE_SMM FW_WRITE PEBS_BASELINE PERF_METRICS PEBS_OUTPUT_PT",
	},
	{
		// Not compared is how many more registers of state there are, which KVM has none of.
		index: msrMCGCap, promises: ^uint64(0xff | 0xff0000), chosen: true,
		counts: []field{{0, 8, "machine-check banks"}},
		names:  "- - - - - - - - MCG_CTL_P MCG_EXT_P MCG_CMCI_P MCG_TES_P - - - - - - - - - - - - MCG_SER_P MCG_EMC_P MCG_ELOG_P MCG_LMCE_P",
	},
	{
		index: 0xc0011029, promises: ^uint64(0),
		names: "- LFENCE_SERIALIZE",
	},
}

// featureOf returns what is known of an MSR, nil if it lists no features that are compared.
func featureOf(index uint32) *featureMSR {
	for i := range featureMSRs {
		if f := &featureMSRs[i]; f.index == index {
			return f
		}
	}
	return nil
}

// seenBy reports whether a guest with that CPUID table may look at the MSR.
func (f *featureMSR) seenBy(table []CPUIDEntry) bool {
	return f.bit == 0 || cpuidValue(table, f.seen.function, f.seen.index, f.seen.reg)&f.bit != 0
}

// bitNames returns, in words, the bits of mask.
func (f *featureMSR) bitNames(mask uint64) (list []string) {
	if mask == 0 {
		return nil // without an allocation: each checkpoint asks
	}
	names := strings.Fields(f.names)
	for ; mask != 0; mask &= mask - 1 {
		bit := bits.TrailingZeros64(mask)
		s := fmt.Sprintf("MSR %#x bit %d", f.index, bit)
		if bit < len(names) && names[bit] != "-" {
			s = names[bit] + " (" + s + ")"
		}
		list = append(list, s)
	}
	return list
}

// lacks names, in words, what a guest was told by its value of the MSR, and what is not so on a host
// with that of supported.
func (f *featureMSR) lacks(value, supported uint64) []string {
	list := f.bitNames(value & f.promises &^ supported)
	for _, n := range f.formats {
		if g, h := n.of(value), n.of(supported); g != 0 && g != h {
			list = append(list, fmt.Sprintf("%d as the %s, which is %d here (MSR %#x)", g, n.name, h, f.index))
		}
	}
	for _, n := range f.counts {
		if g, h := n.of(value), n.of(supported); g > h {
			list = append(list, fmt.Sprintf("%d %s, of which there are %d here (MSR %#x)", g, n.name, h, f.index))
		}
	}
	return list
}

// common returns the value of the MSR that promises what both values promise, and warns of what one of
// them warns of.
func (f *featureMSR) common(a, b uint64) uint64 {
	v := a&b&f.promises | (a|b)&f.warns
	for _, n := range f.formats {
		if n.of(a) == n.of(b) {
			v |= a & n.mask()
		}
	}
	return v
}

// valueOf returns the value of an MSR in a list; ok is false if the list does not have it.
func valueOf(list []MSR, index uint32) (value uint64, ok bool) {
	for _, m := range list {
		if m.Index == index {
			return m.Value, true
		}
	}
	return 0, false
}

// lacksFeature names what a guest with the CPUID table was told by an MSR and is not so on a host that
// supports what the list has. Of an MSR that the list does not have nothing is known: what KVM there
// does not take is refused when the value is tried.
func lacksFeature(table []CPUIDEntry, m MSR, supported []MSR) []string {
	f := featureOf(m.Index)
	if f == nil || !f.seenBy(table) {
		return nil
	}
	has, known := valueOf(supported, m.Index)
	if !known {
		return nil
	}
	return f.lacks(m.Value, has)
}

// lacksFeatures names what the guest in a description was told by MSRs and is not so on the host that c
// describes; of a description without a guest, what any guest of its host may be told.
func (c *CPU) lacksFeatures(guest *CPU) (list []string) {
	table, told := guest.Given, guest.MSRs
	if table == nil {
		table, told = guest.Supported, guest.Features
	}
	for _, m := range told {
		list = append(list, lacksFeature(table, m, c.Features)...)
	}
	// If the guest's host itself has nothing to warn of, the guest was rightly not warned;
	// otherwise the VMM that made it left the warning out.
	for i := range featureMSRs {
		f := &featureMSRs[i]
		there, known := valueOf(guest.Features, f.index)
		here, _ := valueOf(c.Features, f.index)
		value, _ := valueOf(told, f.index)
		if !known || len(told) == 0 || !f.seenBy(table) {
			continue
		}
		for _, name := range f.bitNames(f.warns & here &^ there &^ value) {
			list = append(list, "no need to be warned of "+name)
		}
	}
	return list
}

// readFeatures returns, of the MSRs in which KVM lists what it supports on this host, those that are
// compared; none on a KVM that cannot say. (KVM api, "KVM_GET_MSR_FEATURE_INDEX_LIST".)
func readFeatures(kvm int, indices []uint32) (list []MSR) {
	for _, index := range indices {
		if featureOf(index) == nil {
			continue
		}
		one := msrOne{n: 1, entry: gokvm.MSREntry{Index: index}}
		if n, err := ioctl(kvm, "KVM_GET_MSRS", kvmGetMSRs, unsafe.Pointer(&one)); err == nil && n == 1 {
			list = append(list, MSR{index, one.entry.Data})
		}
	}
	return list
}

// CommonFeatures returns the MSRs in which a CPU lists features, such as the attacks that do not work on it,
// with what this host and the others have in common. It is for the creation of a guest (Config.Features,
// VCPU.SetFeatures), beside CommonCPUID: a guest that is told of less than its first host has can run on
// all of them. Of a host whose Features are not known nothing is promised.
func CommonFeatures(others ...*CPU) ([]MSR, error) {
	here, err := ReadCPU()
	if err != nil {
		return nil, err
	}
	return commonFeatures(here.Features, others), nil
}

// commonFeatures is CommonFeatures on a host that supports what list has.
func commonFeatures(list []MSR, others []*CPU) (common []MSR) {
	for _, m := range list {
		f := featureOf(m.Index)
		if f.chosen {
			continue
		}
		v := f.common(m.Value, m.Value)
		for _, o := range others {
			theirs, _ := valueOf(o.Features, m.Index)
			v = f.common(v, theirs)
		}
		common = append(common, MSR{m.Index, v})
	}
	return common
}

// SetFeatures gives the vCPU values of the MSRs in which a CPU lists features, such as CommonFeatures
// returns. It must be done after SetCPUID and before the first Run. An MSR that the vCPU does not take,
// and that promises the guest no more than it should, is left as it is: the CPU of a guest
// need not have it. One that KVM takes by another call, such as MCG_CAP (KVM_X86_SETUP_MCE), is none of them. Otherwise SetFeatures fails with an MSRError.
func (v *VCPU) SetFeatures(list []MSR) error {
	return v.with(func(fd int) error {
		for _, m := range list {
			f := featureOf(m.Index)
			if f == nil || f.chosen {
				return &MSRError{m.Index, m.Value}
			}
			value, there, err := v.state.readMSR(fd, m.Index)
			if err != nil {
				return err
			}
			if there && value == m.Value {
				continue
			}
			err = v.state.writeMSR(fd, m.Index, m.Value)
			if refused := (*MSRError)(nil); errors.As(err, &refused) && !(there && len(f.lacks(value, m.Value)) > 0) {
				continue
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}
