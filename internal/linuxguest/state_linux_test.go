package linuxguest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// insideTime is how long tests inside a machine may take.
const insideTime = 15 * time.Minute

// insideAMachine runs a test binary in a machine, which has hardware virtualization as
// far as its KVM can tell, and returns how its tests ended, by name. args are the
// binary's; files are more that it needs. stable is a MachineConfig's.
func insideAMachine(t *testing.T, name, binary, args string, files map[string]string, stable bool) map[string]string {
	t.Helper()
	k := needKit(t, "qemu-system-x86_64")
	w := newWorld(t, k)
	w.guestMemory = 128 << 20
	guest, host := filepath.Join(t.TempDir(), "guest.cpio"), filepath.Join(t.TempDir(), "host.cpio")
	w.must(errors.Join(k.GuestArchive(guest), k.HostArchive(host, guest)))
	all := map[string]string{binary: k.Binary(binary)}
	for to, from := range files {
		all[to] = from
	}
	archive := filepath.Join(w.dir, name+".role")
	w.must(RoleArchive(archive, `
`+sayAlive+tellShutdowns(t, k)+`export LOCKSTEP_LINUX=/linux LOCKSTEP_REQUIRE=kvm TMPDIR=/tmp
/`+binary+` -test.v -test.timeout 14m `+args+` </dev/null >/dev/ttyS1 2>&1
code=$?
`+toldShutdowns+`echo "machine: network interrupts $(grep -- -input /proc/interrupts)"
echo "machine: tests ended with $code"
`, all))
	m, err := StartMachine(MachineConfig{
		Name: name, Dir: w.dir, Memory: 3072, Emulator: k.Emulator, Kernel: k.Kernel, Initrd: []string{host, archive}, TSC: w.tsc, Stable: stable,
		Monitor: filepath.Join(w.sockets, name+"-monitor"),
		Pulse:   filepath.Join(w.sockets, name+"-pulse"),
	})
	w.must(err)
	w.machines[name] = m
	ctx, cancel := context.WithTimeout(w.ctx, insideTime)
	defer cancel()
	begun := time.Now()
	err = w.saidAlive(ctx, m, "machine: tests ended with ")
	t.Logf("OURS: a machine that ran guests for %v; evidence that the emulator spoilt it %q", time.Since(begun).Round(time.Second), w.spoilt())
	w.must(err)
	results := make(map[string]string)
	for line := range strings.Lines(m.Events()) {
		f := strings.Fields(line)
		if len(f) >= 3 && f[0] == "---" {
			results[f[2]] = strings.TrimSuffix(f[1], ":")
		}
		if len(f) > 0 && (f[0] == "---" || strings.Contains(f[0], "_test.go:")) {
			t.Log(strings.TrimSpace(line))
		}
		if _, why, ok := strings.Cut(line, "_test.go:"); ok && stoodInside.MatchString(why) && !t.Failed() {
			w.stood = strings.TrimSpace(line)
		}
	}
	if !strings.Contains(m.Console(), "machine: tests ended with 0") || len(results) == 0 {
		t.Errorf("the tests inside have failed")
	}
	return results
}

// stoodInside is what the tests of gokvmhost say of a guest that stands still, whose
// kernel says that a CPU of it did, or that has ended by itself, and then they end: a
// guest that is wrong has other words.
var stoodInside = regexp.MustCompile(`: (the guest hangs|the guest was late|Run has ended): `)

// tellShutdowns returns the part of a role that has the machine's kernel tell of each triple
// fault of a guest, and toldShutdowns the one that writes what it told, in the words that
// Spoilt reads, to the events.
func tellShutdowns(t *testing.T, k *Kit) string {
	t.Helper()
	modules, err := k.modules.Order("kvm-amd")
	if err != nil || len(modules) == 0 {
		t.Logf("no module kvm-amd, and so no evidence of triple faults: %v", err)
		return ""
	}
	line, err := ShutdownProbe(modules[len(modules)-1])
	if err != nil {
		t.Logf("no evidence of triple faults: %v", err)
		return ""
	}
	return `mount -t tracefs tracefs /sys/kernel/tracing && echo '` + line + `' >/sys/kernel/tracing/kprobe_events && echo 1 >/sys/kernel/tracing/events/kprobes/shutdown/enable || echo "machine: no probe of triple faults"
`
}

const toldShutdowns = `sed -n 's/.* shutdown: /triple fault: /; s/gs_base=/GS base /; s/kernel_gs_base=/kernel GS base /; /^triple fault/p' /sys/kernel/tracing/trace >/dev/ttyS1
`

// A machine says every five seconds that it is alive, by a process that has nothing to
// do with any guest. One whose process is not scheduled for as long as hungAfter, on a host that has a CPU
// for it, has stopped itself: nothing that a program does with KVM may stop its host.
const (
	aliveLine = "machine: alive"
	sayAlive  = "while :; do echo '" + aliveLine + "'; sleep 5; done >/dev/ttyS0 &\n"
	hungAfter = 90 * time.Second
)

var errHung = fmt.Errorf("the machine itself has stopped: nothing of it ran for %v in which it had a CPU", hungAfter)

// saidAlive waits until a machine that says that it is alive has said a text. If it stops
// itself, that is the world's evidence, and what its CPUs are at is in the log.
func (w *world) saidAlive(ctx context.Context, m *Machine, text string) error {
	w.t.Helper()
	said, hung := context.WithCancelCause(ctx)
	defer hung(nil)
	w.group.Go(func() {
		if watchAlive(said, m) {
			hung(errHung)
		}
	})
	err := m.Said(said, text)
	if errors.Is(err, errHung) {
		evidence, cpus := m.LostInterrupt(ctx)
		w.hung = fmt.Sprintf("machine %s: %v; %s", m.Name(), errHung, cmp.Or(evidence, "its CPUs do not say why"))
		w.t.Logf("the CPUs of machine %s:\n%s", m.Name(), cpus)
	}
	return err
}

// watchAlive returns true when the machine has stopped, and false when ctx ends or the
// machine has ended.
func watchAlive(ctx context.Context, m *Machine) bool {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	said, quiet := 0, silence{}
	quiet.begin(time.Now(), m.waits())
	for {
		select {
		case <-tick.C:
		case <-m.ended:
			return false
		case <-ctx.Done():
			return false
		}
		if n := strings.Count(m.Console(), aliveLine); n != said {
			said = n
			quiet.begin(time.Now(), m.waits())
		} else if quiet.lasted(time.Now(), m.waits()) > hungAfter {
			return true
		}
	}
}

// linuxFiles returns a directory of the kernel and of the modules that a guest needs.
func linuxFiles(t *testing.T) map[string]string {
	k := needKit(t, "qemu-system-x86_64")
	files := map[string]string{"linux/vmlinuz": k.Kernel}
	modules, err := k.GuestModules()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range modules {
		files["linux/"+filepath.Base(m)] = m
	}
	return files
}

// passedInside fails unless the tests that are the reason to go there have passed, and
// were not skipped.
func passedInside(t *testing.T, results map[string]string, names ...string) {
	t.Helper()
	for _, name := range names {
		if results[name] != "PASS" {
			t.Errorf("%s: %q", name, results[name])
		}
	}
}

// The tests of kvm/gokvmhost that need hardware virtualization and a Linux kernel
// run inside a machine, which has both: a Linux guest goes through chains of saving and
// loading with one vCPU and with two, is rolled back again and again, takes devices away and
// back, looks at its clocks, stands still for long, and sees its disk become longer. (The long form of these tests has more kinds of guests.) Each
// has a machine of its own: one that the emulator spoils costs one test.
func TestTheAdapterIsExactInsideAMachine(t *testing.T) {
	needKit(t, "qemu-system-x86_64")
	for _, test := range []string{
		"TestLinuxGoesThrough30Generations",
		"TestLinuxIsRolledBack20Times",
		"TestLinuxSwitchesItselfOffAndResets",
		"TestLinuxTakesItsDevicesAwayAndBackThrough20Generations",
		"TestLinuxSeesItsClocksNeitherStopNorStep",
		"TestLinuxSurvivesALongPause",
		"TestLinuxSeesItsDiskBecomeLonger",
	} {
		t.Run(test, func(t *testing.T) {
			t.Parallel()
			results := insideAMachine(t, "adapter", "gokvmhost.test", "-test.short -test.run '^"+test+"$'", linuxFiles(t), false)
			passedInside(t, results, test)
		})
	}
}

// The tests of kvm that need a KVM which sets a TSC as it is told, and one that the
// hardware helps; and that what it leaves of a vCPU in struct kvm_run is what it says when
// it is asked.
func TestAVCPUsStateIsExactInsideAMachine(t *testing.T) {
	needKit(t, "qemu-system-x86_64")
	t.Parallel()
	results := insideAMachine(t, "vcpu", "kvm.test", "-test.run 'TSC|EveryMSR|Refused|Description|Common|CatchesUp|Reported|Unlike|Payload|HyperV|AShot|ItStoodStill|AtARollBack|DoesNotTell|WhatIsQueued|EachSituation|NoAccess|InTheMidst|SMI|MachineCheck|Banks|Enclaves|ADeadline|X2APIC'", nil, false)
	passedInside(t, results, "TestTheTSCIsRolledBackHoweverSoon", "TestTheTSCIsRolledBackWithoutOffsets",
		"TestTheTSCsOfAVMKeepTheirDistance", "TestAHostWhoseTSCIsNotStableIsSaid", "TestTheTSCOfAVCPUThatWaitsGoesOnWhereTheHostsIsStable",
		"TestEveryMSRThatCanBeSetIsRestored", "TestHyperVsInterruptsAndTimersAreRestored",
		"TestSyntheticInterruptsThatAVCPUCannotHaveAreRefusedWhileTheStateIsDecoded",
		"TestSyntheticInterruptsThatAVCPUCannotHaveAreRefusedWhileItRuns",
		"TestWhatAShotTakesIsWhatTheCallsSay", "TestAShotHasWhatStructKVMRunLacks", "TestAGuestIsToldByItsClockThatItStoodStill",
		"TestPagesThatStayWritableAreReportedUntilTheyAreNamedNoMore", "TestAnNMIThatIsQueuedAtARollBackIsNotTheRestoredGuests",
		"TestWhatIsQueuedForAVCPUIsGoneWithTheNextLoad", "TestEachSituationOfAVMIsRestored",
		"TestNoAccessIsLostOrRepeatedWhereverAGuestIsMoved", "TestAGuestIsMovedInTheMidstOfItsHandlers",
		"TestEveryMSRThatOnlySomeCPUsSetIsPartOfAState", "TestAnSMIWithoutMemoryForItEndsRunInWords",
		"TestMachineCheckBanksAreRestored", "TestMachineCheckBanksThatDoNotFitAreRefusedInWords",
		"TestADeadlineIsRestoredWhateverTheTimerWas", "TestTheIDOfAnX2APICIsTakenInTheFormThatTheVMWants")
}

// KVM sets a TSC by other rules where that of its host is stable, as it mostly is: only there does it keep the old
// offset where it takes a value for an attempt to synchronise vCPUs, and are the distances of vCPUs kept to
// the cycle.
func TestATSCIsExactInsideAMachineWhoseOwnIsStable(t *testing.T) {
	needKit(t, "qemu-system-x86_64")
	t.Parallel()
	results := insideAMachine(t, "tsc", "kvm.test", "-test.run TSC", nil, true)
	passedInside(t, results, "TestTheTSCIsRolledBackHoweverSoon", "TestTheTSCIsRolledBackWithoutOffsets",
		"TestTheTSCsOfAVMKeepTheirDistance", "TestAHostWhoseTSCIsNotStableIsSaid", "TestATSCThatIsAdvancedIsLater",
		"TestTheTSCOfAVCPUThatWaitsGoesOnWhereTheHostsIsStable")
}

// A machine's kernel has a client for NBD, which this host's may lack.
func TestTheKernelsNBDClientFindsItsDiskInsideAMachine(t *testing.T) {
	needKit(t, "qemu-system-x86_64")
	t.Parallel()
	results := insideAMachine(t, "nbd", "nbd.test", "-test.run TheKernelsClient", nil, false)
	passedInside(t, results, "TestTheKernelsClientFindsItsDiskAtTheOtherHost")
}
