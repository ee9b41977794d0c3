package linuxguest

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// QEMU 7.2's emulation of SVM, with two CPUs, now and then mixes up what belongs to a
// machine and what to its guest. It was seen to take a machine's timer interrupt at the
// instruction behind VMRUN, where the global interrupt flag forbids it and GS base is
// still the guest's; and the GS base of a machine's kernel was seen in the guest's
// register. Then the machine's kernel dies, or a vCPU of the guest ends in a triple
// fault. So a machine has one CPU. It also loses interrupts (see lost_interrupt.go), which a pulse
// mends.

// directMaps are where a kernel whose addresses are not randomised has all of its
// memory, with page tables of four and of five levels. (Linux,
// Documentation/x86/x86_64/mm.rst.)
var directMaps = [...]uint64{0xffff888000000000, 0xff11000000000000}

var (
	kernelLine = regexp.MustCompile(`^\s*\[ *\d+\.\d+\] `)
	gsBase     = regexp.MustCompile(`(?:kernel )?GS base (0x[0-9a-f]+)`)
	oops       = regexp.MustCompile(`(?m)(BUG: .*|Oops: .*|general protection fault.*|stack segment: .*|Kernel panic - not syncing: .*)$`)
)

// machines are words of which one stands in each report of a machine's kernel: the name
// of its hardware, and the module that runs guests. A guest of gokvm's has neither. On
// a quiet console a soft lockup says no more than which process the CPU was in: gokvm,
// or a test of gokvmhost, which is no process of a guest. The CPU stands in the machine's
// kernel then, where no process can keep it.
var machines = [...]string{"Hardware name: QEMU", "kvm_amd"}

var lockup = regexp.MustCompile(`BUG: soft lockup - CPU#\d+ stuck for \d+s! \[gokvm`)

// A report is printed by a kernel in one go, line by line with the time in front, when something
// is wrong with it.
type report struct {
	what    string // its first line that says what is wrong
	machine bool   // the machine's kernel says it, not the guest's
}

// reports finds the reports in what was said. However long one is, what tells whose it
// is may stand anywhere in it, and its beginning may be lost.
func reports(said string) []report {
	var all []report
	block := ""
	end := func() {
		what := oops.FindString(block)
		if what != "" {
			machine := lockup.MatchString(block) || slices.ContainsFunc(machines[:], func(m string) bool { return strings.Contains(block, m) })
			all = append(all, report{what, machine})
		}
		block = ""
	}
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "machine: alive") { // said by a process meanwhile
			continue
		}
		if !kernelLine.MatchString(line) {
			end()
			continue
		}
		block += line
	}
	end()
	return all
}

// Spoilt returns the evidence that the emulator has spoilt a run, "" if there is none,
// from what a machine and its guest have said on the console, and the monitor among the
// events. A machine with machineMemory bytes ran a guest with guestMemory bytes.
//
// Evidence is an oops of the machine's own kernel, or a GS base in the guest's registers that
// lies in the machine's memory beyond the guest's. (What Machine.LostInterrupt finds is
// evidence too.) It is no evidence that a guest was reset, or fell silent; and a guest that
// has printed a panic has failed in any case.
func Spoilt(console, events string, guestMemory, machineMemory uint64) string {
	if GuestPanic(console, events) != "" {
		return ""
	}
	for _, r := range reports(console) {
		if r.machine {
			return "the machine's kernel: " + r.what
		}
	}
	for _, m := range gsBase.FindAllStringSubmatch(console+events, -1) {
		base, err := strconv.ParseUint(m[1], 0, 64)
		if err != nil {
			continue
		}
		for _, begin := range directMaps {
			if base >= begin+guestMemory && base < begin+machineMemory {
				return fmt.Sprintf("the machine's own GS base in the guest's register: %#x", base)
			}
		}
	}
	return ""
}

// roleEnds are the last words of each machine's role, before it switches itself off.
var roleEnds = regexp.MustCompile(`(?m)^machine: (gokvm|tests|control|standby) ended`)

// FellDown returns the evidence that a machine was reset under its kernel: it has ended
// with nobody killing it, its role had not come to its end, and its kernel, which prints
// each panic and each oops before it restarts, has said nothing. No program that runs in a
// machine can do that to it, whatever it does with KVM.
func (m *Machine) FellDown() string {
	if !m.Died() {
		return ""
	}
	return fellDown(m.Console())
}

func fellDown(console string) string {
	if roleEnds.MatchString(console) || oops.MatchString(console) || !strings.Contains(console, machineUp) {
		return ""
	}
	return "the machine was reset under its kernel, without a word"
}

// lateWatchdog matches what a kernel prints of a CPU that did not get on for long. A guest says
// so too if its host gives it no time, as an emulated one does: that is no panic.
var lateWatchdog = regexp.MustCompile(`BUG: soft lockup - CPU#\d+ stuck for \d+s! \[[^g].*`)

// GuestPanic returns the guest kernel's panic or oops, "" if it has printed none.
func GuestPanic(console, events string) string {
	for _, said := range []string{console, events} {
		for _, r := range reports(lateWatchdog.ReplaceAllString(said, "")) {
			if !r.machine {
				return r.what
			}
		}
	}
	return ""
}
