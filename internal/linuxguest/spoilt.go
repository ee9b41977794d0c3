package linuxguest

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// QEMU 7.2's emulation of SVM, with two CPUs, now and then mixes up what belongs to a
// machine and what to its guest: the GS base of a machine's kernel was seen in the
// guest's register, and the other way round. Then the machine's kernel dies, or a vCPU
// of the guest ends in a triple fault.

// directMap is where a kernel whose addresses are not randomised has all of its memory.
// (Linux, Documentation/x86/x86_64/mm.rst.)
const directMap = 0xffff888000000000

var (
	gsBase = regexp.MustCompile(`(?:kernel )?GS base (0x[0-9a-f]+)`)
	oops   = regexp.MustCompile(`(?m)(BUG: .*|Oops: .*|general protection fault.*|stack segment: .*|Kernel panic - not syncing: .*)$`)
)

// machineHardware is what a machine's kernel says of its hardware in an oops; a guest of
// gokvm's has none to name.
const machineHardware = "Hardware name: QEMU"

// Spoilt returns the evidence that the emulator has spoilt a run, "" if there is none,
// from what a machine and its guest have said on the console, and the monitor among the
// events. A machine with machineMemory bytes ran a guest with guestMemory bytes.
//
// Evidence is an oops of the machine's own kernel, or a GS base in the guest's registers
// that lies in the machine's memory beyond the guest's. That a guest was reset, or a
// machine fell silent, is none; and a guest that has printed a panic has failed in any
// case.
func Spoilt(console, events string, guestMemory, machineMemory uint64) string {
	if GuestPanic(console, events) != "" {
		return ""
	}
	if strings.Contains(console, machineHardware) {
		if m := oops.FindString(console); m != "" {
			return "the machine's kernel: " + m
		}
	}
	for _, m := range gsBase.FindAllStringSubmatch(console+events, -1) {
		base, err := strconv.ParseUint(m[1], 0, 64)
		if err == nil && base >= directMap+guestMemory && base < directMap+machineMemory {
			return fmt.Sprintf("the machine's own GS base in the guest's register: %#x", base)
		}
	}
	return ""
}

// GuestPanic returns the guest kernel's panic, "" if it has printed none.
func GuestPanic(console, events string) string {
	for _, said := range []string{console, events} {
		for _, m := range oops.FindAllStringIndex(said, -1) {
			// The machine's own names its hardware within the report.
			report := said[m[0]:min(len(said), m[0]+4096)]
			if before := said[max(0, m[0]-4096):m[0]]; !strings.Contains(report, machineHardware) && !strings.Contains(before, machineHardware) {
				return said[m[0]:m[1]]
			}
		}
	}
	return ""
}
