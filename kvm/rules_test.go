package kvm_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// rules are sentences of the package's comments that say what is exact, and where it ends,
// and of the pages beside it; and the tests that fail where one does not hold.
var rules = []struct {
	page, sentence string // page: a file of the package, or of docs
	tests          []string
}{
	// Pauses.
	{"doc.go", "[VM.Pause] returns when no vCPU runs and none has an exit pending", []string{
		"TestPausing1000TimesAtRandomLosesAndDoublesNothing", "TestAGuestThatIsInterruptedIsPausedAnywhere", "TestAnExitWhoseHandlerFailedIsStillCompleted",
		"TestNoAccessIsLostOrRepeatedWhereverAGuestIsMoved", "TestAGuestIsMovedInTheMidstOfItsHandlers"}},
	{"doc.go", "pauses nest", []string{"TestPausesNest", "TestManyPauseAtOnce"}},
	{"doc.go", "[VM.Stopped], which says how long the guest stood still, and [VM.Throttle], which slows it down", []string{
		"TestStoppedIsTheTimeThatTheGuestLost", "TestThrottleKeepsTheGuestOutForAShare", "TestAThrottledVCPUIsInTheGuestForWhatItsShareLeaves"}},
	{"doc.go", "Every other method of a vCPU needs it stopped (paused, or not in Run) and fails with [ErrRunning] otherwise", []string{
		"TestDevicesOfARunningVMAreNeitherSavedNorRestored"}},

	// State.
	{"doc.go", "Restoring into a VM that has run is an ordinary case", []string{
		"TestARunningVMIsRolledBack20Times", "TestAStartThatWasRolledBackStartsNothing", "TestEachSituationOfAVMIsRestored"}},
	{"doc.go", "A VM that is loaded after it has run drops them before the first vCPU enters the guest", []string{
		"TestARolledBackGuestGoesByThePageTablesThatWereLoaded", "TestAKVMThatKeepsCopiesOfPageTablesIsFoundOut", "TestCopiesAreDroppedBesideTheHostsSlots"}},
	{"doc.go", "MSRs (those that KVM lists, and of the others memory types, machine-check banks with their number and what they can do, FEATURE_CONTROL, the keys that launch enclaves, DEBUGCTL, TSC_AUX, AMD's list of errata and KVM's own, and Hyper-V's synthetic interrupts and timers", []string{
		"TestEveryMSRThatCanBeSetIsRestored", "TestMSRsThatKVMDoesNotListAreAskedFor", "TestEveryMSRThatOnlySomeCPUsSetIsPartOfAState", "TestHyperVsInterruptsAndTimersAreRestored",
		"TestMachineCheckBanksAreRestored", "TestTheKeysThatLaunchEnclavesAreRestoredOrRefused"}},
	{"vcpustate.go", "the local APIC before the TSC deadline, which its mode decides on", []string{
		"TestADeadlineIsRestoredWhateverTheTimerWas"}},
	{"doc.go", "so is what its VMM has told it of machine-check banks (KVM_X86_SETUP_MCE), which a vCPU is given with its state", []string{
		"TestMachineCheckBanksThatDoNotFitAreRefusedInWords", "TestAStateIsTriedWithTheBanksThatItHas", "TestAVCPUThatIsGivenOtherBanksIsGivenTheirRegisters"}},
	{"doc.go", "pending events with a pending exception's payload, and the distance of its TSC from the other vCPUs'", []string{
		"TestAPendingExceptionKeepsItsPayload", "TestAnExceptionThatIsPendingWithoutItsPayloadIsTaken", "TestTheTSCsOfAVMKeepTheirDistance"}},
	{"pausestate.go", "What may still change while the vCPU stands still (its local APIC takes interrupts, of devices that are stopped after it) is read when its state is asked for.", []string{
		"TestWhatChangesAfterAVCPUHasStoppedIsSaved", "TestADeadlineThatPassesWhileAVCPUIsSavedIsNotLost", "TestAShotIsUsedOnlyForWhatItShows"}},
	{"syncregs.go", "The first time the result is compared with that of the three calls, and if they differ too often synced is not used any more.", []string{
		"TestAKVMThatLeavesSomethingElseIsAskedOneByOne", "TestWhatAShotTakesIsWhatTheCallsSay", "TestRegistersAreTakenOnlyIfKVMHasLeftThem"}},
	{"vm.go", "a save may be encoded when the vCPU runs again", []string{"TestASecondPauseDoesNotTouchWhatIsStillToBeEncoded"}},
	{"doc.go", "nested virtualization ([NotSavedError], on saving and on loading)", []string{
		"TestAGuestThatUsesNestedVirtualizationIsNotSaved", "TestNestedVirtualizationIsNotOffered", "TestAStateThatKVMWouldRefuseIsRefusedWhileItIsDecoded"}},
	{"doc.go", "shadow stacks (the same)", []string{"TestAGuestThatUsesShadowStacksIsNotTaken", "TestShadowStacksAreNotOffered"}},
	{"doc.go", "KVM's Xen interface (on saving, as far as KVM can be asked of it)", []string{
		"TestAGuestThatUsesKVMsXenInterfaceIsKnown", "TestAGuestThatUsesKVMsXenInterfaceIsNotSaved"}},
	{"doc.go", "lets every channel count anew when it is given their state", []string{"TestTheTimerCountsAnewWhenItIsRestored"}},
	{"doc.go", "a slot of another address space cannot be added", []string{"TestASlotOfAnotherAddressSpaceCannotBeAdded"}},
	{"doc.go", "In a VM that Create made a guest that sends itself an SMI ends Run with an error that says so", []string{
		"TestAnErrorInSystemManagementModeIsSaidInWords", "TestAnSMIWithoutMemoryForItEndsRunInWords"}},
	{"doc.go", "more vCPUs than an APIC ID of 8 bits can name", []string{"TestMoreVCPUsThanAPICIDsAreAnErrorAtCreation"}},
	{"doc.go", "Every count, size and index is checked against this host when a section is decoded", []string{
		"TestAStateThatKVMWouldRefuseIsRefusedWhileItIsDecoded", "TestEveryTruncationOfAStateIsRefused", "FuzzVCPUState", "FuzzChipState"}},
	{"doc.go", "so that what KVM refuses is known before the guest is touched", []string{
		"TestWhatKVMRefusesIsRefusedWhileDecoded", "TestAnMSRThatKVMRefusesIsRefusedWhileDecoded"}},

	// Errors of KVM itself.
	{"run.go", "KVM reports an error that ends it (an ExitError or the error of KVM_RUN)", []string{
		"TestAnInstructionThatKVMCannotEmulateIsNamed", "TestTheInstructionOfAnErrorIsFoundWhereTheGuestWas", "TestExitsThatNobodyHandlesEndRun"}},

	// Unlike hosts.
	{"doc.go", "[CommonCPUID] is what several hosts can all give it.", []string{"TestTheCommonCPUIDIsTakenByBothHosts"}},
	{"doc.go", "[CommonFeatures] is the same for the MSRs by which a CPU tells of features", []string{
		"TestFeaturesThatHostsHaveInCommonFitEachOfThem", "TestAGuestIsCreatedWithTheFeaturesThatHostsHaveInCommon"}},
	{"doc.go", "what a guest was promised is compared with what this host's KVM supports, as CPUID is", []string{
		"TestAStateWithAPromiseThatThisHostDoesNotKeepIsRefused", "TestAnMSRThatKVMTakesWithAnyValueIsJudgedByWhatKVMSupports",
		"TestAGuestThatWasNotWarnedIsRefusedWhereThereIsSomethingToWarnOf"}},
	{"doc.go", "a state that does not fit is refused in words ([CPUError]) in any case", []string{
		"TestACPUThatHasMoreIsRefusedWhileItIsDecoded", "TestAnotherVendorIsRefusedWhileDecoded", "TestWiderPhysicalAddressesAreRefusedWhileDecoded",
		"TestTheOtherHostsDescriptionIsJudgedInWords", "TestAnMSRThatKVMRefusesIsNamedInTheHello"}},

	// Time.
	{"doc.go", "The TSC, and KVM's clock, go on from where they were when the state was saved, exactly where KVM has KVM_VCPU_TSC_OFFSET.", []string{
		"TestTheTSCIsRolledBackHoweverSoon", "TestTheTSCIsRolledBackWithoutOffsets"}},
	{"doc.go", "The package reads the TSC back to see whether KVM has set it ([VM.TSCError]).", []string{"TestATSCThatIsNotObeyedIsSaid"}},
	{"doc.go", "KVM lets the TSC of a vCPU stand still while the vCPU does not run", []string{"TestTheTSCOfAVCPUThatWaitsGoesOnWhereTheHostsIsStable"}},
	{"doc.go", "The log tells of such a host once.", []string{
		"TestTheTSCsOfAVMKeepTheirDistance", "TestAHostWhoseTSCIsNotStableIsSaid"}},
	{"doc.go", "With CatchUp, which the host can choose instead, the time of the move passes for the guest.", []string{"TestAGuestCatchesUpWithTheWallClockIfAsked"}},
	{"doc.go", "After pauses that add up to 10 ms the guest is told, by its clock, that it did not run", []string{"TestAGuestIsToldByItsClockThatItStoodStill", "TestAGuestIsToldOnceOfATime"}},

	// Dirty memory.
	{"doc.go", "The bitmaps of an adopted VM may have to be cleared by a second call; the package finds that out.", []string{
		"TestEachPageIsReportedOnceWhoeverClearsTheLog", "TestALogThatBeginsFullIsReportedAndForgotten",
		"TestEachPageOfALargeSlotIsReportedOnce", "TestWhileItIsNotKnownWhoClearsTheLogEachPageIsReportedOnce"}},
	{"doc.go", "Writes of vCPUs are logged by KVM, in a bitmap for each slot or in a ring for each vCPU", []string{
		"TestMemoryMovedByTheDirtyLogAloneStaysIdenticalOver30Generations", "TestKVMsLogHasEveryPageThatTheKernelSawWritten", "TestAFullDirtyRingLosesNothing"}},
	{"doc.go", "KVM does not log writes of the host to guest memory: the host reports them with [VM.MarkDirty].", []string{
		"TestTheDirtyLogNamesEveryWriteOfTheHostThatItIsTold", "TestMarksMadeWhileTheLogIsReadAreNotLost"}},
}

// A rule that is no longer said, or whose test is gone, has to go from the table, by hand.
func TestEachRuleOnRecordIsStillSaidAndStillTested(t *testing.T) {
	have := testsHere(t)
	words := map[string]string{}
	for _, r := range rules {
		if words[r.page] == "" {
			words[r.page] = comments(t, r.page)
		}
		if !strings.Contains(words[r.page], r.sentence) {
			t.Errorf("%s does not say %q any more: does it not hold, or is it said in other words?", r.page, r.sentence)
		}
		if len(r.tests) == 0 {
			t.Errorf("nothing fails where %q does not hold", r.sentence)
		}
		for _, name := range r.tests {
			if !have[name] {
				t.Errorf("there is no %s, which proves that %q", name, r.sentence)
			}
		}
	}
}

// comments returns the comments of a file of this package, as one line.
func comments(t *testing.T, file string) string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, g := range f.Comments {
		all = append(all, strings.Fields(g.Text())...)
	}
	return strings.Join(all, " ")
}

// testsHere returns the names of this package's tests and fuzz targets, on whatever system.
func testsHere(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, text, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range f.Decls {
			if d, ok := d.(*ast.FuncDecl); ok && d.Recv == nil {
				have[d.Name.Name] = true
			}
		}
	}
	return have
}
