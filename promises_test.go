package lockstep_test

import (
	"strings"
	"testing"
)

// promises are sentences of the documents that promise something, as they begin, and the
// tests that fail where they are not kept.
var promises = []struct {
	page, sentence string
	tests          []string // "dir.TestName"
}{
	{"README.md", "**Nothing is lost.** No frame that the primary's guest sent is dropped", []string{
		"colo/filter.TestNothingIsLostReorderedOrEarlyWhateverHappens", "colo/filter.TestSurvivorSendsWhatWasReleasedAndHadNotLeft", "colo/protect.TestSimulatedFaults"}},
	{"README.md", "**Nothing is contradicted.** A frame leaves only when the secondary holds, whole and validated,", []string{
		"colo/compare.TestNothingLeavesThatASurvivorWouldNotKnow", "colo/filter.TestPrimaryHoldsUntilTheCheckpointIsReceived"}},
	{"README.md", "From that moment the secondary commits, whatever becomes of the connection.", []string{"colo.TestReceivedThatMayHaveArrivedIsCommitted"}},
	{"README.md", "**No torn guest runs.**", []string{"colo.TestHostFaultEndsTheSessionAndLosesNothing", "colo.TestATornGuestOfEpoch0SaysSo", "failover.TestTornGuestRefusesEverything"}},
	{"README.md", "**Two sides never both emit**", []string{
		"failover.TestNoSequenceOfEventsLetsTwoHostsActAsHolder", "failover.TestEverySequenceOfEightCallsKeepsTheInvariants", "colo.TestCutAnywhereLeavesOneSideInAStateThatWas"}},
	{"README.md", "nothing leaves a host whose grant, and whose secondary's promise, has run out, not even after the host was stopped", []string{
		"failover.TestStoppedProcessFindsTheGateShut", "failover.TestPromiseCountsLikeAGrant", "colo/protect.TestNothingLeavesWhileTheGateIsShut"}},
	{"README.md", "**An order is a claim**", []string{"colo.TestAnOrderIsAClaim", "colo.TestAnOrderThatIsRefusedIsNotCarriedOut"}},
	{"README.md", "Only `Fenced`, the word that the other host is dead, asks nobody.", []string{"colo.TestFencedAsksNobody"}},
	{"README.md", "a peer that is slow is waited for as long as it beats.", []string{"colo.TestASlowPeerThatBeatsIsWaitedFor", "colo.TestASlowPeerThatDoesNotBeatIsLost"}},
	{"README.md", "Either side can end the protection without stopping the guest.", []string{"colo.TestEitherSideEndsTheProtectionOnPurpose"}},
	{"README.md", "VLANs and PPPoE are compared inside", []string{"colo/compare.TestTaggedPacketsAreComparedInside", "colo/compare.TestSegmentsInWrappersOfEachKind"}},
	{"README.md", "ARP and neighbour discovery by whose address they claim", []string{"colo/compare.TestAddressesAreComparedAsClaims"}},
	{"README.md", "everything else waits for the next checkpoint.", []string{"colo/compare.TestWhatCannotBeComparedWaitsForItsCheckpoint"}},
	{"README.md", "Flows whose guests never agree (TLS, SSH) leave with the checkpoints, at a pace that the host sets.", []string{
		"colo/compare.TestAFlowThatNeverAgreesIsSetApart", "colo/compare.TestThePaceIsWhatACheckpointTakes"}},
	{"README.md", "**A flush covers**", []string{"replication.TestFlushCoversEveryWriteThatWasAnsweredBeforeIt", "replication.TestAFailedSyncIsFinal"}},
	{"README.md", "with an error that says where, with the guest as it was.", []string{
		"colo.TestBadCheckpointIsRefusedWholeAndFailoverIsStillPossible", "colo.TestCheckpointThatEndsAnywhereIsRefusedWhole"}},
	{"README.md", "every truncation must fail.", []string{"vmstate.TestEveryTruncationOfAStream", "kvm.TestEveryTruncationOfAStateIsRefused"}},
	{"README.md", "The failover machine is walked through all call sequences up to length eight.", []string{"failover.TestEverySequenceOfEightCallsKeepsTheInvariants"}},

	{"docs/operations.md", "at least two beats", []string{"colo/protect.TestWhatCannotWorkIsRefusedAtNew"}},
	{"docs/operations.md", "A checkpoint that is older than `CheckpointTimeout` is an outage", []string{"colo.TestSlowIsNotLostUntilItCostsTooMuch", "colo.TestAHeartbeatExcusesNoOutage"}},
	{"docs/operations.md", "refuse a copy of an older generation.", []string{"failover.TestEveryRequestToEveryRecordFollowsTheRules", "colo/protect.TestOldGenerationGetsNowhere"}},
	{"docs/operations.md", "processes killed or stopped at any point", []string{"failover/sharedfile.TestProcessesAreKilledAtAnyPoint", "failover/sharedfile.TestStoppedProcessKeepsNobodyOut"}},
	{"docs/operations.md", "the present holder is preferred", []string{"colo/protect.TestPairThatIsPartedLeavesTheGuestWhereItIs"}},
	{"docs/operations.md", "its gate is shut at the end of its term", []string{"colo/protect.TestPrimaryThatIsCutOffFromEverybodyStopsInTime"}},
	{"docs/operations.md", "goes on: the secondary's promises keep its gate open", []string{"colo/protect.TestPairGoesOnWithoutItsArbiterAndNobodyTakesOver"}},
	{"docs/operations.md", "Without an arbiter a pair that has lost each other stands still until an operator calls", []string{"colo/protect.TestOperatorDecidesWithoutAnArbiter"}},
	{"docs/operations.md", "On a secondary whose primary lives it is refused", []string{"colo/protect.TestFailoverOnTheSecondaryOfALivePrimaryIsRefused"}},
	{"docs/operations.md", "the arbiter grants one of them and refuses the other", []string{"colo/protect.TestSecondStartOfAGuestThatRunsElsewhereIsRefused"}},
	{"docs/operations.md", "`replication.Newest` compares two identities", []string{"replication.TestNewestIsTheCopyWhoseGuestWentOn"}},
	{"docs/operations.md", "Disks that the guest here has written itself start it without `Start` too", []string{"colo/protect.TestHostsThatWereBothDownStartTheGuestFromTheDisksThatAreItsOwn"}},
	{"docs/operations.md", "it is brought back to its last checkpoint instead", []string{"colo/protect.TestADeadPairsSecondaryStartsFromItsLastCheckpointIfItHasAJournal"}},
	{"docs/operations.md", "A secondary that was only away is sent what its disks have missed", []string{"replication.TestSecondaryThatComesBackGetsOnlyWhatItMissed", "colo/protect.TestABlipCostsWhatHasChanged"}},
	{"docs/operations.md", "Of any other copy of a disk checksums are compared and what differs is sent, and memory goes as a whole.", []string{
		"replication.TestSynchroniseSendsOnlyWhatDiffersByItsSum", "colo/protect.TestAHostThatIsNotWhoItWasGetsAll"}},
	{"docs/operations.md", "If anything fails on the way, the guest runs on where the arbiter says.", []string{"colo/protect.TestSwitchoverThatFailsLeavesTheGuestRunning"}},
	{"docs/operations.md", "`Switchover` and `Migrate` return an error then.", []string{"colo/protect.TestAVerbThatGaveTheGuestToAHostThatDiedIsAnError"}},
	{"docs/operations.md", "One that lives and cannot run the guest says so, and the old primary goes on.", []string{"colo/protect.TestAGenerationThatIsNotUsedGoesBack"}},
	{"docs/operations.md", "A guest that died with the host that it was given to is started anew", []string{"colo/protect.TestAGuestThatDiedWithTheHostItWasGivenToIsStartedFromEitherHostsDisks"}},
	{"docs/operations.md", "Complete on the host where it ran", []string{"colo/protect.TestCompleteEndsTheGuestOnBothHosts"}},
	{"docs/operations.md", "`Job.Query` answers at once, without I/O", []string{"colo/protect.TestQueryAnswersAtOnceWhileTheArbiterIsSlow"}},
	{"docs/operations.md", "Images and journals are locked while they are open", []string{"replication.TestImagesAreLocked"}},
	{"docs/operations.md", "compares machine type, memory blocks and disks of the two hosts before anything moves", []string{"colo/protect.TestHostsThatDoNotFitAreRefusedInWords"}},
	{"docs/operations.md", "On a primary of package `colo/protect` whose secondary is in step, the other side goes on by itself", []string{"colo/protect.TestAHostWhoseDiskFailsLeavesTheGuestToTheOther"}},

	{"docs/security.md", "an authority's signature alone is not enough", []string{"colo/protect.TestOnlyTheConfiguredHostGetsInByTLS"}},
	{"docs/security.md", "an old primary is refused", []string{"replication/nbd.TestEXPORTNAMEForClientsThatKnowNothingElse"}},
	{"docs/security.md", "a flood of SYNs takes no place of an established connection in the rewriter", []string{"colo/filter.TestAFloodOfSYNsTakesNoPlaceOfAConnection"}},
	{"docs/security.md", "make this host write to a disk, or run a guest, after the arbiter has given the guest to this host", []string{"replication.TestOnceStoppedThePrimaryIsRefused", "colo/protect.TestOldGenerationGetsNowhere"}},
	{"docs/security.md", "keep a goroutine of this process after the session.", []string{"colo.TestMain", "colo/protect.TestMain"}},
}

func TestEveryPromiseOnRecordIsStillMadeAndStillTested(t *testing.T) {
	words, on := map[string]string{}, newTestOn(t)
	for _, p := range promises {
		if words[p.page] == "" {
			words[p.page] = strings.Join(strings.Fields(read(t, p.page)), " ")
		}
		if !strings.Contains(words[p.page], p.sentence) {
			t.Errorf("%s does not say %q any more: is it not promised, or only in other words?", p.page, p.sentence)
		}
		for _, name := range p.tests {
			dir, test, _ := strings.Cut(name, ".")
			on.want(dir, test, p.sentence)
		}
	}
}
