package linuxguest

import (
	"strings"
	"testing"
)

func TestOnlyEvidenceMakesARunSpoilt(t *testing.T) {
	const guest, machine = 128 << 20, 768 << 20
	const (
		machineOops = "[  9.1] BUG: unable to handle page fault for address: 0\n[  9.1] Hardware name: QEMU Standard PC (i440FX + PIIX, 1996)\n[  9.1] Kernel panic - not syncing: Fatal exception\n"
		guestPanic  = "guest: up\n[  4.2] Kernel panic - not syncing: Attempted to kill init!\n"
		guestBug    = "[  4.2] BUG: unable to handle page fault for address: 8\n[  4.2] CPU: 1 PID: 1 Comm: init\n"
		reset       = "ended: the guest restarts, which ends it here"
	)
	at := func(base string) string {
		return reset + ": triple fault of vCPU 1 at RIP 0x0, GS base " + base + ", kernel GS base 0x7f0000001000"
	}
	for _, c := range []struct {
		why, console, events string
		spoilt, panic        bool
	}{
		{"nothing", "", "", false, false},
		{"a reset without a word", "guest: up\n", reset, false, false},
		{"a reset with the guest's own GS base", "", at("0xffff888007c00000"), false, false},
		{"a reset with a user's GS base", "", at("0x7ffff000"), false, false},
		{"the machine's GS base in the guest", "", at("0xffff88802fc00000"), true, false},
		{"the same as what SWAPGS would make it", "", "GS base 0x0, kernel GS base 0xffff88802fd00000", true, false},
		{"an address that neither has", "", at("0xffff888030000000"), false, false},
		{"the machine's GS base, with page tables of five levels", "", at("0xff1100002fc00000"), true, false},
		{"the guest's GS base, with page tables of five levels", "", at("0xff11000007c00000"), false, false},
		{"the machine's oops", machineOops, "", true, false},
		{"the machine's oops, so long that its beginning is lost", strings.Repeat("[  9.1]  ? asm_exc_page_fault+0x22/0x30\n", 500) +
			"[  9.1]  svm_vcpu_run+0x1b8/0x6c0 [kvm_amd]\n" + strings.Repeat("[  9.1]  do_syscall_64+0x5d/0x90\n", 500) +
			"[  9.1] Kernel panic - not syncing: Fatal exception in interrupt\n", "", true, false},
		{"a machine whose CPUs are locked up in its kernel", "[   39.182095] kvm [118]: vcpu0, guest rIP: 0xffffffff81073744 Unhandled WRMSR(0xc0010007) = 0xffff\n" +
			"[   66.167106] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [gokvm:129]\n[   66.393024] watchdog: BUG: soft lockup - CPU#1 stuck for 26s! [gokvm:123]\n", "", true, false},
		{"a guest whose CPU is locked up", "[   66.167106] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [jobs:1]\n", "", false, false},
		{"a guest that panics since its CPU is locked up", "[   66.167106] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [jobs:1]\n[   66.2] Kernel panic - not syncing: softlockup: hung tasks\n", "", false, true},
		{"the guest's panic", guestPanic, reset, false, true},
		{"the guest's panic, with the machine's GS base", guestPanic, at("0xffff88802fc00000"), false, true},
		{"the guest's oops", guestBug, "", false, true},
		{"the guest's panic among the events", "", guestPanic, false, true},
		{"both", guestPanic + strings.Repeat("x", 5000) + "\n" + machineOops, "", false, true},
	} {
		if got := Spoilt(c.console, c.events, guest, machine); (got != "") != c.spoilt {
			t.Errorf("%s: spoilt %q", c.why, got)
		}
		if got := GuestPanic(c.console, c.events); (got != "") != c.panic {
			t.Errorf("%s: the guest's panic %q", c.why, got)
		}
	}
}

func TestAMachineThatIsResetWithoutAWordIsEvidence(t *testing.T) {
	for _, c := range []struct {
		why, console string
		fell         bool
	}{
		{"a role that had begun", "machine: up\n[ 3.1] kvm: Nested Virtualization enabled\n", true},
		{"a role that has ended", "machine: up\nmachine: gokvm ended with 1\n", false},
		{"a kernel that has said why", "machine: up\n[ 9.1] Kernel panic - not syncing: Fatal exception\n", false},
		{"a machine that never came up", "", false},
	} {
		if got := fellDown(c.console); (got != "") != c.fell {
			t.Errorf("%s: %q", c.why, got)
		}
	}
}
