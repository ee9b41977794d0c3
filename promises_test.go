package lockstep_test

import (
	"slices"
	"strings"
	"testing"
)

// A promise is a sentence of a page, or of a comment in a file of Go, as it begins, and the
// tests that fail where it is not kept.
type promise struct {
	page, sentence string
	tests          []string // "dir.TestName", and "..TestName" of this directory
}

// promises are those of the documents.
var promises = []promise{
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
	{"README.md", "VLANs and PPPoE are compared inside", []string{"colo/compare.TestTaggedPacketsAreComparedInside", "colo/compare.TestSegmentsInWrappersOfEachKind", "colo/compare.TestMoreTagsThanAreToldApartAreNotComparedInside"}},
	{"README.md", "ARP and neighbour discovery by whose address they claim", []string{"colo/compare.TestAddressesAreComparedAsClaims"}},
	{"README.md", "everything else waits for the next checkpoint.", []string{"colo/compare.TestWhatCannotBeComparedWaitsForItsCheckpoint"}},
	{"README.md", "Flows whose guests never agree (TLS, SSH) leave with the checkpoints, at a pace that the host sets.", []string{
		"colo/compare.TestAFlowThatNeverAgreesIsSetApart", "colo/compare.TestTheNextCheckpointIsAskedForWhenTheSecondaryRunsFromTheLast"}},
	{"README.md", "**A flush covers**", []string{
		"replication.TestFlushCoversEveryWriteThatWasAnsweredBeforeIt", "replication.TestSyncsOfAFileThatComeDuringOneShareTheNext",
		"replication.TestAFailedSyncIsFinal", "replication.TestSyncOfAFileThatFailsIsTheLast"}},
	{"README.md", "with an error that says where, with the guest as it was.", []string{
		"colo.TestBadCheckpointIsRefusedWholeAndFailoverIsStillPossible", "colo.TestCheckpointThatEndsAnywhereIsRefusedWhole"}},
	{"README.md", "every truncation must fail.", []string{"vmstate.TestEveryTruncationOfAStream", "kvm.TestEveryTruncationOfAStateIsRefused"}},
	{"README.md", "The failover machine is walked through all call sequences up to length eight.", []string{"failover.TestEverySequenceOfEightCallsKeepsTheInvariants"}},
	{"README.md", "the secondary stages the copy and then commits it, all or nothing.", []string{"colo.TestCheckpointThatEndsAnywhereIsRefusedWhole", "colo.TestBadCheckpointIsRefusedWholeAndFailoverIsStillPossible"}},
	{"README.md", "If either side dies, the other goes on, and nobody outside can tell", []string{
		"colo/protect.TestSimulatedFaults", "colo/compare.TestNothingLeavesThatASurvivorWouldNotKnow", "examples/protected.TestClientNoticesNothingOfKillsStopsAndSwitchovers"}},
	{"README.md", "kills, stops and switches two hosts that protect a guest by themselves, and checks every line that the guest says.", []string{
		"examples/protected.TestClientNoticesNothingOfKillsStopsAndSwitchovers", "examples/protected.TestClientCountsWhatIsWrong"}},
	{"README.md", "Without arguments it starts two hosts, kills, stops and switches them, and checks every line that leaves.", []string{"examples/protected.TestClientNoticesNothingOfKillsStopsAndSwitchovers"}},
	{"README.md", "sticky error, offsets, bounded lengths, vectored writes.", []string{
		"qemufile.TestTheFirstWriteErrorSticks", "qemufile.TestEveryTruncationIsTold", "qemufile.TestALengthIsBoundedBeforeMemoryIsTaken", "qemufile.TestAFlushIsOneVectoredWrite"}},
	{"README.md", "Every QMP event of QEMU's first list and of today's schema is a type", []string{
		"event.TestDocumentedFormsOldAndNewAreReadAsThoseOfToday", "event.TestWhatQEMUHasSaidIsTypedAndEncodesAsItSaidIt", "event.TestWhatQEMUHasSaidIsInOrder"}},
	{"README.md", "A QEMU that was just started is sent no zero pages that it has already", []string{"colo/standby.TestZeroPagesThatAreZerosAlreadyAreLeftOut"}},
	{"README.md", "refuses unlike CPUs in words.", []string{"kvm.TestACPUThatHasMoreIsRefusedWhileItIsDecoded", "kvm.TestTheOtherHostsDescriptionIsJudgedInWords"}},
	{"README.md", "`kvm` and `colo` do not know each other", []string{"..TestKVMAndCOLODoNotKnowEachOther"}},
	{"README.md", "No package prints, or starts a goroutine that outlives the call", []string{
		"..TestNoPackagePrintsExitsOrBeginsByItself", "colo.TestMain", "colo/protect.TestMain", "colo/proxy.TestMain", "kvm.TestMain", "replication.TestMain", "migrate.TestMain"}},
	{"README.md", "leaves a guest that is never resumed and never promoted.", []string{"failover.TestTornGuestRefusesEverything", "colo.TestATornGuestOfEpoch0SaysSo"}},
	{"README.md", "A pair over a link that is cut at every single write, in both directions", []string{"colo.TestCutAnywhereLeavesOneSideInAStateThatWas"}},
	{"README.md", "Each decoder has a fuzz target;", []string{"..TestEveryPackageThatBoundsAnInputHasAFuzzTarget"}},
	{"README.md", "page and packet paths are tested to allocate nothing.", []string{
		"vmstate/ram.TestPagePathsAllocateNothing", "colo/filter.TestFramesAreCarriedWithoutAllocation", "colo/compare.TestMatchedPacketsAllocateNothing", "colo/proxy.TestNeighborsAreBoundedAndLearnedWithoutAllocation"}},
	{"README.md", "The root module depends on [gokvm](https://github.com/bobuhiro11/gokvm)", []string{"..TestTheRootModuleDependsOnWhatTheREADMESays"}},
	{"README.md", "its tests on go-cmp and goleak. Nothing else.", []string{"..TestTheRootModuleDependsOnWhatTheREADMESays"}},
	{"README.md", "No other package links gokvm.", []string{"..TestGokvmIsLinkedByThePackagesThatTheREADMESays"}},
	{"README.md", "it runs there before its memory has come.", []string{"migrate.TestAGuestRunsBeforeItsMemoryIsThere"}},
	{"README.md", "A connection that breaks in postcopy is taken up again.", []string{
		"migrate.TestAConnectionMayBreakAgainAndAgain", "migrate.TestNothingIsLostWhereverTheConnectionBreaks"}},
	{"README.md", "Either side may be a QEMU.", []string{"migrate.TestAQEMUTakesAGuestWhoseMemoryFollows", "migrate.TestAQEMUsMemoryFollowsItsGuest"}},
	{"README.md", "one declaration saves, loads and describes.", []string{
		"vmstate.TestEveryKindOfFieldComesBack", "vmstate.TestOurDescriptionIsQEMUs"}},
	{"README.md", "what differs between two streams, and whether one machine would load the other's.", []string{
		"vmstate/diff.TestEveryKindOfDifferenceIsFound", "vmstate/diff.TestWhatWouldNotLoadIsSaidInWords"}},
	{"README.md", "how long packets really waited too", []string{"colo/metrics.TestAPageOfMetrics"}},
	{"README.md", "a VMM of some 80 lines, and some 120 that protect it, flags included.", []string{"..TestTheShortestProgramIsAsShortAsTheREADMESays"}},
	{"README.md", "`Tracker`: a dirty log of any mapping, kept by the kernel", []string{
		"vmstate/ram.TestTheTrackerReportsExactlyWhatWasWrittenIn10000Rounds"}},
	{"README.md", "`Verifier` checks a host's own dirty log against it.", []string{"vmstate/ram.TestAWriteThatTheLogMissesIsNamedAndStillReported"}},
	{"README.md", "`Lazy`: memory that comes when it is touched, over a connection or from a file", []string{
		"vmstate/ram.TestALazySaverSendsWhatIsAskedForFirst", "vmstate/ram.TestAGuestOfAFileHasWhatItTouchesBeforeTheRest"}},
	{"README.md", "a secondary that holds two dirty sets in place of a copy of the guest.", []string{
		"vmstate/ram.TestAStagedOnlyCacheHoldsAtMostTwoDirtySets"}},
	{"README.md", "as QEMU 7.2's byte for byte where both have the command", []string{
		"event/qmp.TestAnswersAreThoseOfQEMUByteForByte", "event/qmp.TestAQEMUAndTheServerGiveTheSameAnswers"}},
	{"README.md", "with grants that end for their holder first.", []string{"failover.TestHolderStopsBeforeItsTermCountedFromTheRequest"}},
	{"README.md", "know whose copies they are, and get only what they missed", []string{
		"replication.TestIdentityIsCarriedInASector", "replication.TestSecondaryThatComesBackGetsOnlyWhatItMissed"}},
	{"README.md", "so that sparse disks stay sparse.", []string{"replication.TestHolesAreNotReadOnEitherSide", "replication/nbd.TestClientAndServerAgreeOnEveryCommand"}},
	{"README.md", "It announces the guest after a takeover where the host says how often, and becomes the primary's side again by `Promote`.", []string{
		"colo/proxy.TestAnnouncementsAreRepeatedWithGrowingGaps", "colo/proxy.TestAPromotedPrimaryGoesOnWithTheAnnouncement"}},
	{"README.md", "After a link that was lost for a moment only what changed is sent, disks and memory.", []string{
		"colo/protect.TestABlipCostsWhatHasChanged", "replication.TestSecondaryThatComesBackGetsOnlyWhatItMissed"}},
	{"README.md", "writes a complete stream of the last whole checkpoint.", []string{
		"colo/standby.TestABrokenCheckpointLeavesTheOneBefore", "colo/standby.TestAKilledPrimaryIsBroughtBackFromItsLastCheckpoint"}},
	{"README.md", "A View reads a checkpoint while later ones come.", []string{"colo/standby.TestAViewIsItsCheckpointWhileLaterOnesCome"}},
	{"README.md", "A checkpoint is made when the two guests send different things, and otherwise when some time has passed.", []string{
		"colo/protect.TestWhatBothGuestsSayLeavesWithoutACheckpoint", "colo.TestTimerCountsFromTriggerToTrigger", "colo/compare.TestDivergenceNamesItsFlow"}},
	{"README.md", "The example of package `colo/protect`; a test keeps the two equal.", []string{"..TestTheProgramThatLeadsTheREADMEIsTheExample"}},
	{"README.md", "This is a single one; a test keeps it equal, too.", []string{"colo.TestTheProgramInTheREADMEIsTheExample"}},
	{"README.md", "has the picture of the imports, which a test keeps true.", []string{"..TestThePictureShowsTheImports"}},
	{"README.md", "A frame may leave twice, with the same content.", []string{"colo/filter.TestSurvivorSendsWhatWasReleasedAndHadNotLeft"}},
	{"README.md", "30 generations of save and restore with memory moved only by the dirty log, byte-identical; roll-back into a running VM.", []string{
		"kvm.TestMemoryMovedByTheDirtyLogAloneStaysIdenticalOver30Generations", "kvm.TestARunningVMIsRolledBack20Times"}},
	{"README.md", "with random writes, broken links and power cuts, 20,000 seeds.", []string{
		"replication.TestModel", "..TestTheModelRunsAsManySeedsAsTheREADMESays"}},
	{"README.md", "52 faults can be planted", []string{
		"replication.TestEachMutantIsOneOfTheSourceAsItIs", "..TestTheREADMESaysHowManyFaultsOfDisksCanBePlanted"}},
	{"README.md", "has what is exported, which a test compares.", []string{"..TestTheExportedAPIIsTheOneOnRecord"}},
	{"README.md", "Streams of unknown devices, commands, return path.", []string{
		"vmstate.TestUnknownLiveSectionsAreCarried"}},
	{"README.md", "Precopy over several connections (multifd), plain, zlib, or zstd", []string{
		"migrate.TestAGuestArrivesOverChannels"}},
	{"README.md", "a checkpoint's memory over several connections, plain or compressed, where both sides use this library.", []string{
		"colo.TestACheckpointsMemoryGoesOverChannels", "colo.TestWithoutAgreementTheChannelsAreClosed"}},
	{"README.md", "and holds its output until the checkpoint that covers it is received.", []string{
		"colo/filter.TestPrimaryHoldsUntilTheCheckpointIsReceived"}},
	{"README.md", "connections that acknowledge at once what they have read", []string{
		"colo/quickack.TestWhatIsReadIsAcknowledgedAtOnce"}},
	{"README.md", "a guardian has the guest run on when the standby is lost.", []string{
		"examples/lockstep-qemu.TestAGuestWhoseStandbyIsLostRunsOnAndIsProtectedAgain"}},
	{"README.md", "Where the QEMU has a colo-compare, output is held until its checkpoint.", []string{
		"examples/lockstep-qemu.TestOutputIsHeldWhileTheGuestIsProtectedAndNoLonger", "examples/lockstep-qemu.TestOutputIsNotHeldWithoutAColoCompare"}},
	{"README.md", "`relay` passes checkpoints on to QEMU secondaries; `check` says whether a guest can be protected, and prints the command line of a QEMU that can take it over", []string{
		"examples/lockstep-qemu.TestRelayInStepAnswersWhenTheSecondariesHaveTheCheckpoint", "examples/lockstep-qemu.TestCheckSaysWhatStandsAgainstProtection", "examples/lockstep-qemu.TestTheOfferedCommandLineTakesTheGuest"}},
	{"README.md", "`-rehearse` tries beforehand the QEMU that is to bring the guest back;", []string{
		"examples/lockstep-qemu.TestARehearsalFindsOutWhetherTheCommandLineFits"}},
	{"README.md", "what two streams differ in, and why one machine would not load the other's.", []string{
		"examples/streamdump.TestTwoStreamsAreCompared", "examples/streamdump.TestADestinationsOwnStreamTellsWhetherItWouldLoad"}},
	{"README.md", "over 500 malformed and random inputs get the same bytes.", []string{
		"event/qmp.TestAQEMUAndTheServerGiveTheSameAnswers"}},

	{"docs/operations.md", "they succeed once there is room, and nothing has to be started again.", []string{
		"replication.TestAGuestWritesOnceThereIsRoomForTheMarkOfARegion", "replication.TestReplicationGoesOnOnceThereIsRoomForMetadata"}},
	{"docs/operations.md", "A journal with which the disk was not changed last", []string{"replication.TestAJournalUndoesNothingThatWasWrittenWithoutIt"}},
	{"docs/operations.md", "the next synchronisation compares everything.", []string{"replication.TestARestoredImageIsNotTakenForTheOneThatItWas"}},
	{"docs/operations.md", "A host that seeks the other one tells it when it is refused for longer than a second", []string{"colo/protect.TestWhyTheOtherHostDoesNotFollowIsToldOnce", "colo/protect.TestARefusalThatPassesIsNotTold"}},
	{"docs/operations.md", "leaves two hosts that wait. The first primary has all that the guest has written, and is refused, since the arbiter has granted the generation after that of its disks. The secondary's disks say", []string{"colo/protect.TestAPersonDecidesWhereASecondaryDiesBetweenItsGrantAndItsRecord"}},
	{"docs/operations.md", "A guest that was saved before its disk grew, also while no job had it, is told when it goes on.", []string{"kvm/internal/device.TestAGuestThatStandsStillIsToldOfALongerDiskWhenItGoesOn"}},
	{"docs/operations.md", "One that was told of a disk which is longer than the image is refused, in words.", []string{"kvm/internal/device.TestALengthThatADiskDoesNotHaveIsRefusedInWords"}},
	{"docs/operations.md", "that nobody answers is in the log", []string{"colo/protect.TestAHostThatNobodyAnswersSaysSoOnce"}},
	{"docs/operations.md", "A host that waits and lacks what it follows with tells it, too, such as memory for its copy, a disk or its network. It refuses primaries with that reason", []string{"colo/protect.TestAHostThatLacksWhatItFollowsWithWaitsForIt"}},
	{"docs/operations.md", "a host on which the storage that both reach is not mounted refuses to start", []string{"failover/sharedfile.TestWhatIsAboveADirectoryIsNotMade"}},
	{"docs/operations.md", "It changes nothing then, and its error (`replication.ErrEpoch`) says of each disk where it is:", []string{"replication.TestDisksThatHaveNoEpochInCommonAreLeftAlone"}},
	{"docs/operations.md", "The journals that were moved away fit these images no more after that.", []string{"replication.TestAJournalUndoesNothingThatWasWrittenWithoutIt"}},
	{"docs/security.md", "A certificate that is renewed in its files is shown with the next connection, without another start of the host", []string{
		"colo/protect.TestLoadTLSShowsTheCertificateThatTheFilesHaveNow", "examples/lockstep-qemu.TestRenewedCertificatesAreTakenWithoutAnotherStart"}},
	{"docs/security.md", "is told nothing, not even whether a guest is here; the latter is in the log", []string{"colo/protect.TestOnlyTheConfiguredHostGetsInByTLS", "colo/protect.TestACertificateForAnotherNameIsToldOnceUpToTheNextConnection"}},
	{"docs/operations.md", "A host that has lost the other one says so in words", []string{"colo/protect.TestALossIsToldInWordsUntilTheGuestIsProtectedAgain"}},
	{"docs/operations.md", "That stays in `LastError` until the guest is protected again", []string{"colo/protect.TestALossIsToldInWordsUntilTheGuestIsProtectedAgain"}},
	{"docs/operations.md", "A disk of a protected guest is made larger while the guest runs", []string{"colo/protect.TestADiskGrowsWhileItsGuestIsProtected"}},
	{"docs/operations.md", "a growth that has ended in between is finished so, or when the two hosts next meet", []string{"colo/protect.TestAGrowthIsInterruptedAtEachOfItsSteps", "colo/protect.TestAHostThatCannotCatchUpSaysSo"}},
	{"docs/operations.md", "A host that was away while the disk grew makes its copy longer when it comes back", []string{"colo/protect.TestAHostThatWasAwayWhileADiskGrewCatchesUp"}},
	{"docs/operations.md", "both warn when a session begins", []string{"colo/protect.TestHostsWithArbitersOfDifferentKindsWarn"}},
	{"docs/operations.md", "A host that follows, and whose arbiter does not know of the other host's grant within a term, warns of it", []string{
		"colo/protect.TestAHostThatFollowsTellsOfAnArbiterThatDoesNotKnowOfThePrimary", "colo/protect.TestAnArbiterThatIsSlowIsTheSame"}},
	{"docs/operations.md", "Told also when a grant cannot be renewed", []string{"colo/protect.TestAnArbiterThatIsOutOfReachIsToldOfOnce"}},
	{"docs/operations.md", "If it was granted, and could not be run then", []string{"examples/lockstep-gokvm.TestASavedGuestThatCouldNotBeRunGoesOnWithAPersonsWord"}},
	{"docs/operations.md", "at least two beats", []string{"colo/protect.TestWhatCannotWorkIsRefusedAtNew"}},
	{"docs/operations.md", "A checkpoint that is older than `CheckpointTimeout` is an outage", []string{"colo.TestSlowIsNotLostUntilItCostsTooMuch", "colo.TestAHeartbeatExcusesNoOutage"}},
	{"docs/operations.md", "A link that moves bytes is not silent, however slow", []string{"replication.TestASlowSecondaryIsNotTakenForASilentOne"}},
	{"docs/operations.md", "and a promise of the secondary; at least 20 ms", []string{"colo/protect.TestWhatCannotWorkIsRefusedAtNew"}},
	{"docs/operations.md", "the shortest time from one trigger to the next, where a checkpoint is asked for", []string{"colo.TestRequestsFollowEachOtherAtAMeasuredPace"}},
	{"docs/operations.md", "the secondary was too slow for CheckpointTimeout: `step` says where", []string{"colo.TestSlowIsNotLostUntilItCostsTooMuch"}},
	{"docs/operations.md", "somebody has ended it on purpose; reason and side are in it", []string{"colo.TestEitherSideEndsTheProtectionOnPurpose"}},
	{"docs/operations.md", "After five seconds a QEMU that hangs (it is stopped, or its storage is) is named", []string{
		"examples/lockstep-qemu.TestAQEMUThatHangsAtAnyStepOfAProtectionIsNamed", "examples/lockstep-qemu.TestAGuardianWhoseQEMUHangsAtAnyStepNamesItAndEnds"}},
	{"docs/operations.md", "the guardian says that it takes no orders, or none but out of band (its main loop hangs), and its `status` has `qemu`.", []string{
		"examples/lockstep-qemu.TestAQEMUThatHangsAndIsKilledIsADeath", "examples/lockstep-qemu.TestAQEMUThatHangsInBandAndIsKilledIsADeath"}},
	{"docs/operations.md", "`a checkpoint is due, and the standby has received nothing for 6s`", []string{
		"colo/standby.TestWhatAGuardDoes", "examples/lockstep-qemu.TestACheckpointIsOverdueWhenNothingHasComeForItsDelayAndASilence"}},
	{"docs/operations.md", "A **guardian that hangs** (it is stopped, or its host swaps) stops no guest.", []string{
		"examples/lockstep-qemu.TestAStandbyThatIsPromotedBesideAGuardianThatHangsWaitsUntilTheGuestSurelyDoesNotRun"}},
	{"docs/operations.md", "After five seconds the standby says that the guardian is lost, and `promote` is refused:", []string{
		"examples/lockstep-qemu.TestAnOrderToPromoteIsRefusedWhereNobodyWouldStopTheGuest"}},
	{"docs/operations.md", "An arbiter changes nothing about it:", []string{"colo/standby.TestWhoMayGoOnWithACopy"}},
	{"docs/operations.md", "Where that host cannot be reached, cut its power, and `promote -stopped`.", []string{"colo/standby.TestWhoMayGoOnWithACopy",
		"examples/lockstep-qemu.TestAGuestWhoseGuardianWasEndedIsGoneOnWithWhenAnOperatorSaysThatItDoesNotRun"}},
	{"docs/operations.md", "Nothing is decided: it may go on.", []string{"examples/lockstep-qemu.TestAQEMUThatHungForAWhileIsProtectedAgain"}},
	{"docs/operations.md", "Ctrl-C ends each of these programs within some seconds", []string{
		"examples/lockstep-qemu.TestWhoEndsAProgramWaitsNoLongerThanTheGrace", "examples/lockstep-qemu.TestAStandbyWhoseQEMUHangsEndsAndLeavesNothingBehind"}},
	{"docs/operations.md", "is no failure: neither host's log has a warning of it", []string{"colo/protect.TestASessionThatIsEndedOnPurposeReadsLikeNoFailure", "colo/protect.TestAHostThatLeavesHasAskedForTheEndItself"}},
	{"docs/operations.md", "Each host's log tells the end of such a session in one line, COLO_EXIT", []string{"colo/protect.TestASessionThatIsEndedOnPurposeReadsLikeNoFailure"}},
	{"docs/operations.md", "A primary that reaches its secondary again, and hears that it", []string{"colo/protect.TestAPrimaryWithoutAnArbiterGoesOnWhenItsSecondaryHasNothing", "colo/protect.TestOnlyAHostThatHasLeftASessionSaysThatItIsOver"}},
	{"docs/operations.md", "without the words \"record generation\" the guest has not run there. (The library logs them before the guest goes on, as a warning.)", []string{"colo/protect.TestATakeoverDoesNotWaitForTheRecordOfItsGeneration"}},
	{"docs/operations.md", "for `generation` a takeover waits two seconds at most", []string{"colo/protect.TestATakeoverDoesNotWaitForTheRecordOfItsGeneration"}},
	{"docs/operations.md", "refuse a copy of an older generation.", []string{"failover.TestEveryRequestToEveryRecordFollowsTheRules", "colo/protect.TestOldGenerationGetsNowhere"}},
	{"docs/operations.md", "A claim of a host that knows a later generation is refused, also by `Start`", []string{
		"failover.TestEveryRequestToEveryRecordFollowsTheRules", "colo/protect.TestDisksOfAGenerationThatTheRecordHasLostStartAGuestWhenItIsWrittenAnew"}},
	{"docs/operations.md", "For `failover/sharedfile` the record is a file of this name in a new directory", []string{"failover/sharedfile.TestARecordThatAPersonHasWrittenIsGoneOnFrom"}},
	{"docs/operations.md", "Call Fenced on the primary, of generation 7.", []string{"colo/protect.TestAPairKeepsItsGuestWhenThePersonWritesTheRecordAnewThatWasLost"}},
	{"docs/operations.md", "End the jobs of both hosts, write the record, and start them", []string{"colo/protect.TestDisksOfAGenerationThatTheRecordHasLostStartAGuestWhenItIsWrittenAnew"}},
	{"docs/operations.md", "processes killed or stopped at any point", []string{"failover/sharedfile.TestProcessesAreKilledAtAnyPoint", "failover/sharedfile.TestStoppedProcessKeepsNobodyOut"}},
	{"docs/operations.md", "the present holder is preferred", []string{"colo/protect.TestPairThatIsPartedLeavesTheGuestWhereItIs"}},
	{"docs/operations.md", "its gate is shut at the end of its term", []string{"colo/protect.TestPrimaryThatIsCutOffFromEverybodyStopsInTime"}},
	{"docs/operations.md", "goes on: the secondary's promises keep its gate open", []string{"colo/protect.TestPairGoesOnWithoutItsArbiterAndNobodyTakesOver"}},
	{"docs/operations.md", "Without an arbiter a pair that has lost each other stands still until an operator calls", []string{"colo/protect.TestOperatorDecidesWithoutAnArbiter"}},
	{"docs/operations.md", "The other one follows that host as soon as the two reach each other again", []string{"colo/protect.TestAHostWithoutAnArbiterFollowsTheOneThatAnOperatorHasGoOn"}},
	{"docs/operations.md", "On a secondary whose primary lives it is refused", []string{"colo/protect.TestFailoverOnTheSecondaryOfALivePrimaryIsRefused"}},
	{"docs/operations.md", "the arbiter grants one of them and refuses the other", []string{"colo/protect.TestSecondStartOfAGuestThatRunsElsewhereIsRefused"}},
	{"docs/operations.md", "refuse such a pair with `ErrDiverged` and the words", []string{"replication.TestACopyThatIsTooOldIsNotSaidToHaveGoneOn"}},
	{"docs/operations.md", "`replication.Newest` compares two identities", []string{"replication.TestNewestIsTheCopyWhoseGuestWentOn"}},
	{"docs/operations.md", "A host whose own guest was the last to write to its disks starts the guest from them without `Start` too", []string{"colo/protect.TestHostsThatWereBothDownStartTheGuestFromTheDisksThatAreItsOwn"}},
	{"docs/operations.md", "it is brought back to its last checkpoint instead", []string{"colo/protect.TestADeadPairsSecondaryStartsFromItsLastCheckpointIfItHasAJournal"}},
	{"docs/operations.md", "A secondary whose disk has failed is not handed the guest", []string{"colo/protect.TestASecondaryWhoseDiskHasFailedIsHandedNoGuest"}},
	{"docs/operations.md", "it takes `HungAfter` until the takeover gives the disk up", []string{"colo/protect.TestAnImageThatHangsHoldsUpNoStopOfAHostThatFollows"}},
	{"docs/operations.md", "You see `DISK_STALLED` with operation `stop`", []string{"colo/protect.TestATakeoverThatWaitsForADiskSaysSo"}},
	{"docs/operations.md", "A secondary that was only away is sent what its disks have missed", []string{"replication.TestSecondaryThatComesBackGetsOnlyWhatItMissed", "colo/protect.TestABlipCostsWhatHasChanged"}},
	{"docs/operations.md", "For any other copy of a disk checksums are compared and what differs is sent, and all of the memory is sent.", []string{
		"replication.TestSynchroniseSendsOnlyWhatDiffersByItsSum", "colo/protect.TestAHostThatIsNotWhoItWasGetsAll"}},
	{"docs/operations.md", "If anything fails on the way, the guest runs on where the arbiter says.", []string{"colo/protect.TestSwitchoverThatFailsLeavesTheGuestRunning"}},
	{"docs/operations.md", "leaves the pair protected, in the same session.", []string{"colo/protect.TestASwitchoverIsGivenUpAtAnyMoment"}},
	{"docs/operations.md", "and no order is carried out while it does not answer this one.)", []string{"colo/protect.TestASwitchoverIsRefusedWhileTheArbiterIsAway"}},
	{"docs/operations.md", "So does one to a host that the arbiter does not answer, or whose arbiter is another one, which that host finds out first.", []string{
		"colo/protect.TestASwitchoverToAHostThatWouldNotBeGrantedTheGuestIsRefused", "colo/protect.TestASwitchoverToAHostThatAsksAnotherArbiterIsRefused"}},
	{"docs/operations.md", "This host need not reach the arbiter: a guest can be brought away from one that is cut off.", []string{
		"colo/protect.TestAHostThatDoesNotReachTheArbiterHandsItsGuestToOneThatDoes"}},
	{"docs/operations.md", "`Switchover` and `Migrate` return an error then.", []string{"colo/protect.TestAVerbThatGaveTheGuestToAHostThatDiedIsAnError"}},
	{"docs/operations.md", "One that lives and cannot run the guest says so, and the old primary goes on.", []string{"colo/protect.TestAGenerationThatIsNotUsedGoesBack"}},
	{"docs/operations.md", "is made again by the host that has the guest, beside the session", []string{
		"colo/protect.TestAControlConnectionThatEndsAloneIsToldAndMadeAgain", "colo/protect.TestAControlConnectionThatFallsSilentIsNoticedAndMadeAgain"}},
	{"docs/operations.md", "A guest that died with the host that it was given to is started anew", []string{"colo/protect.TestAGuestThatDiedWithTheHostItWasGivenToIsStartedFromEitherHostsDisks"}},
	{"docs/operations.md", "Complete on the host where it ran", []string{"colo/protect.TestCompleteEndsTheGuestOnBothHosts"}},
	{"docs/operations.md", "`Job.Query` answers at once, without I/O", []string{"colo/protect.TestQueryAnswersAtOnceWhileTheArbiterIsSlow"}},
	{"docs/operations.md", "Images and journals are locked while they are open", []string{"replication.TestImagesAreLocked"}},
	{"docs/operations.md", "Before anything moves it compares the machine type, the memory blocks, the disks, and the devices with their versions of the two hosts.", []string{
		"colo/protect.TestHostsThatDoNotFitAreRefusedInWords", "colo/protect.TestHostsCompareTheirDevicesBeforeAnythingMoves", "colo/protect.TestWhatOneSideAloneHasIsFoundByEither"}},
	{"docs/operations.md", "leaves the guest to a secondary that is in step, as one whose disk has failed does", []string{
		"colo/protect.TestASecondaryHasTheGuestOfAPrimaryThatCannotResumeIt", "colo/protect.TestASecondaryHasTheGuestOfAPrimaryWhoseResumeHangs"}},
	{"docs/operations.md", "each session in which it cannot run the guest either is ended, at most one a second.", []string{
		"colo/protect.TestASecondaryWhoseGuestCannotRunIsTriedOnceASecond"}},
	{"docs/operations.md", "On a primary of package `colo/protect` whose secondary is in step, the other side goes on by itself", []string{"colo/protect.TestAHostWhoseDiskFailsLeavesTheGuestToTheOther"}},
	{"docs/operations.md", "A test compares the last column with the constants of the code", []string{"..TestTheTableOfTimesHasTheDefaultsOfTheCode"}},
	{"docs/operations.md", "by default at least three times `Lost`", []string{"colo/protect.TestAPeerThatBeatsMaySayNothingForThreeTimesLostByDefault"}},
	{"docs/operations.md", "claims of hosts that know a later generation are refused until a person looks", []string{"failover.TestEveryRequestToEveryRecordFollowsTheRules"}},
	{"docs/operations.md", "means that no packet leaves and no write is acknowledged", []string{"colo/protect.TestNothingLeavesWhileTheGateIsShut", "colo/protect.TestHostThatIsCutOffAnswersNoWriteAndFollowsLater"}},
	{"docs/operations.md", "or hears from the other host that it has taken over; then it follows", []string{"colo/protect.TestAHostFollowsTheOneThatHasTakenOverThoughItReachesNoArbiter"}},
	{"docs/operations.md", "is refused, and waits to be protected again", []string{"colo/protect.TestPairThatIsPartedLeavesTheGuestWhereItIs"}},
	{"docs/operations.md", "goes on alone under the next generation | asks until it is refused", []string{
		"colo/protect.TestASecondaryThatIsCutOffFromEverybodyAsksUntilItIsRefused"}},
	{"docs/operations.md", "gate shut at the end of its term, open again with the next renewal", []string{
		"colo/protect.TestALoneHostHoldsItsOutputWhileItsArbiterIsAway"}},
	{"docs/operations.md", "takes the guest with it: nobody knows what it has sent, and both hosts wait for a primary.", []string{
		"colo/protect.TestAHostThatDiesOnceItIsGrantedTheGuestTakesItAlong"}},
	{"docs/operations.md", "with `Start` and the generation of the arbiter's record as `Held`.", []string{
		"colo/protect.TestAHostThatDiesOnceItIsGrantedTheGuestTakesItAlong"}},
	{"docs/operations.md", "the guest runs on here and is handed over when one is back", []string{
		"colo/protect.TestAHostWhoseDiskFailsGoesOnWhereItsSecondaryHasJustDied", "colo/protect.TestAHostAloneWhoseDiskHasFailedLeavesItsGuestToTheNextSecondary"}},
	{"docs/operations.md", "it is started anew, and finds the record there", []string{"failover/program.TestAProgramThatIsKilledIsStartedAnew"}},
	{"docs/operations.md", "(`File.Rebind`) says that they still belong together.", []string{
		"examples/diskreplica.TestStatusOfImages", "replication.TestARestoredImageIsNotTakenForTheOneThatItWas"}},
	{"docs/operations.md", "asks; nobody takes over until one of them reaches the arbiter", []string{"colo/protect.TestPairGoesOnWithoutItsArbiterAndNobodyTakesOver"}},
	{"docs/operations.md", "Nobody is asked.", []string{"colo/protect.TestFencedGoesOnAtOnceAndTellsTheArbiterLater"}},
	{"docs/operations.md", "two hosts emit until the arbiter, which is told afterwards, refuses one of them.", []string{"colo/protect.TestFencedThatWasWrongGivesUp"}},
	{"docs/operations.md", "A claim with an older generation than the arbiter's record is refused and that host waits to follow.", []string{
		"failover.TestEveryRequestToEveryRecordFollowsTheRules", "colo/protect.TestSecondStartOfAGuestThatRunsElsewhereIsRefused"}},
	{"docs/operations.md", "After a secondary was killed while it followed, its image is in the state of no checkpoint, which the next synchronisation repairs.", []string{
		"colo/protect.TestDiskFollowsTheGuestThroughKills", "colo/protect.TestADeadPairsSecondaryStartsFromItsLastCheckpointIfItHasAJournal"}},
	{"docs/operations.md", "Nothing has to be called.", []string{"colo/protect.TestPrimaryGoesOnAloneAndTakesTheNextSecondary"}},
	{"docs/operations.md", "so `Start` is refused, with `Held` too.", []string{"colo/protect.TestAGuestThatDiedWithTheHostItWasGivenToIsStartedFromEitherHostsDisks"}},
	{"docs/operations.md", "which refuses images that do not wait for that", []string{"examples/diskreplica.TestHoldRecordsTheGenerationThatAnImageWaitsFor"}},
	{"docs/operations.md", "this copy never runs again.", []string{"failover.TestTornGuestRefusesEverything", "colo.TestATornGuestOfEpoch0SaysSo"}},
	{"docs/operations.md", "this copy is not to be trusted, every later flush fails", []string{"replication.TestAFailedSyncIsFinal", "replication.TestMetadataThatCannotBeWrittenFailsTheDisk"}},
	{"docs/operations.md", "A host whose disk has failed does not follow another.", []string{"colo/protect.TestASecondaryWhoseDiskHasFailedFollowsNobody"}},
	{"docs/operations.md", "The copy that it leaves behind starts no guest", []string{"colo/protect.TestAPowerCutWhileAGuestLeavesADiskThatCannotRecordIt"}},
	{"docs/operations.md", "fails when it is attached or started, since its side file cannot be made.", []string{"replication.TestAFileBesideWhichNothingCanBeMadeFailsWhenItIsAttachedOrStarted"}},
	{"docs/operations.md", "its output is held for as long; a secondary that is slower is given up and sought again", []string{
		"colo.TestSlowIsNotLostUntilItCostsTooMuch", "colo/protect.TestPrimaryGoesOnAloneAndTakesTheNextSecondary"}},
	{"docs/operations.md", "Renewals come three times in a term", []string{"failover.TestPromiseCountsLikeAGrant"}},
	{"docs/operations.md", "with a margin of two per cent of the term and a millisecond", []string{
		"failover.TestHolderStopsBeforeItsTermCountedFromTheRequest", "..TestTheMarginOfAGrantIsThatOfThePage"}},
	{"docs/operations.md", "A process that is stopped (SIGSTOP) and goes on later finds its gate shut.", []string{
		"failover.TestStoppedProcessFindsTheGateShut"}},
	{"docs/operations.md", "takes over when the primary's term is over", []string{"colo/protect.TestPrimaryThatIsCutOffFromEverybodyStopsInTime"}},
	{"docs/operations.md", "**Failover** claims the guest for this host: it asks the arbiter.", []string{"colo.TestAnOrderIsAClaim"}},
	{"docs/operations.md", "is succeeded by its secondary all the same, which may be told Fenced as well.", []string{
		"colo/protect.TestTheSecondaryOfAHostThatWasFencedGoesOn"}},
	{"docs/operations.md", "asks the arbiter for the guest, starts it, and seeks the other; the other waits.", []string{
		"colo/protect.TestTwoHostsProtectAGuest"}},
	{"docs/operations.md", "A job records the generation of that copy on disks that know whose they are", []string{
		"colo/protect.TestHostsThatWereBothDownStartTheGuestFromTheDisksThatAreItsOwn"}},
	{"docs/operations.md", "after 20 ms at first, then after twice as long each time, up to a second.", []string{
		"..TestAHostSeeksTheOtherAsOftenAsOperatorsAreTold"}},
	{"docs/operations.md", "`Query().Stats.Downtime` says how long the guest stood still.", []string{
		"colo/protect.TestDowntimeEndsWithTheOtherHostsWord"}},
	{"docs/operations.md", "Pause on the host where it runs; Resume protects it again", []string{
		"colo/protect.TestPauseLetsTheGuestRunUnprotectedUntilResume"}},
	{"docs/operations.md", "The end of the context alone leaves the guest paused and lets the other host go on", []string{
		"colo/protect.TestHostThatLeavesLetsTheOtherGoOnAtOnce"}},
	{"docs/operations.md", "It is bound to the image by inode number and time of birth", []string{
		"replication.TestMetadataIsOfTheImageThatItWasMadeFor", "replication.TestAnImageWithTheInodeNumberOfARemovedOneIsAnother", "replication.TestImagesOfOneMomentAreApart"}},
	{"docs/operations.md", "writes do not reach the secondary; they are counted and sent when it is synchronised again", []string{
		"replication.TestBrokenStaysBrokenAndTheGuestDoesNotNotice", "replication.TestAfterABreakOnlyWhatMayDifferIsCopied"}},
	{"docs/operations.md", "A `protect.NIC` holds output until the checkpoint that covers it is received.", []string{
		"colo/protect.TestTwoHostsProtectAGuest", "colo/filter.TestPrimaryHoldsUntilTheCheckpointIsReceived"}},
	{"docs/operations.md", "compares the packets of both guests, and what both have said leaves at once.", []string{
		"colo/protect.TestWhatBothGuestsSayLeavesWithoutACheckpoint"}},
	{"docs/operations.md", "how long a transfer may stand still if the peer is not known to live", []string{
		"colo.TestSilentPeerIsNoticedWhereverItFallsSilent"}},
	{"docs/operations.md", "is how long a dead primary stays unnoticed at most", []string{
		"failover/heartbeat.TestSilentPeerIsLostAfterTheTimeout", "failover/heartbeat.TestBrokenConnectionIsALossWithItsReason"}},
	{"docs/operations.md", "the loss of a minority of its members, slow members, changes of the leader, answers that are late or lost", []string{
		"failover/etcd.TestLossOfTheLeaderDoesNotMoveTheGuest", "failover/etcd.TestAnswerThatIsLateIsCountedFromItsRequest"}},
	{"docs/operations.md", "follows; it does not claim the guest while a promise lasts", []string{
		"colo/protect.TestPairGoesOnWithoutItsArbiterAndNobodyTakesOver"}},
	{"docs/operations.md", "Reason `request`: it was ordered on either host", []string{
		"colo/protect.TestASwitchoverIsTheEndOfASessionByRequestOnBothHosts"}},
	{"docs/operations.md", "the guest runs on unprotected; the error says what did not fit.", []string{
		"colo/protect.TestHostsThatDoNotFitAreRefusedInWords"}},
	{"docs/operations.md", "the guest dirties memory faster than the link carries it", []string{
		"colo.TestAGuestThatIsTooBusyIsThrottledUntilItIsProtected"}},
	{"docs/operations.md", "a request of the guest has failed because of the disk", []string{
		"replication.TestAGuestsRequestThatItsDiskFailsIsToldOf", "replication.TestARequestThatIsRefusedIsNotTheDisksFault"}},
	{"docs/operations.md", "Told once a second at most of reads, and as often of writes.", []string{"replication.TestAGuestsRequestThatItsDiskFailsIsToldOf"}},
	{"docs/operations.md", "If both fail, it is told of both.", []string{
		"replication.TestBothFailuresOfADiskAreToldOnce"}},

	{"docs/security.md", "needs the token that the control connection's answer gave", []string{
		"colo/protect.TestAConnectionOfAPairNeedsItsToken", "colo/protect.TestAStrangerDoesNotReplaceAControlConnection"}},
	{"docs/security.md", "It never sees the guest.", []string{"colo/protect.TestAnArbiterLearnsTheHostsAndTheCheckpointsAndNothingElse"}},
	{"docs/security.md", "an authority's signature alone is not enough", []string{"colo/protect.TestOnlyTheConfiguredHostGetsInByTLS"}},
	{"docs/security.md", "must be `Peer.Name` of the very guest that is asked for", []string{"colo/protect.TestAHostGetsInForTheGuestThatIsItsOwn"}},
	{"docs/security.md", "QEMU's tls-creds, and TLS in `examples/lockstep-qemu`", []string{
		"examples/lockstep-qemu.TestTLSWithAQEMUPrimary", "examples/lockstep-qemu.TestTLSWithAQEMUSecondary", "examples/lockstep-qemu.TestADiskOverTLS",
		"examples/lockstep-qemu.TestTheControlChannelTakesOurCertificatesOnly"}},
	{"docs/security.md", "the socket's file permissions; over TCP nothing, except that the connection of a browser,", []string{"event/qmp.TestABrowserOrdersNothing"}},
	{"docs/security.md", "A site that a browser shows can neither read it nor give it orders, and without `Config.Control` there are no orders", []string{
		"colo/protect/watch.TestOnlyThePageGivesOrders", "colo/protect/watch.TestWithoutControlThereIsNothingToSteerWith"}},
	{"docs/security.md", "takes one of the loopback interface where it is told none", []string{"colo/protect/watch.TestAPortAloneIsOnLoopback"}},
	{"docs/security.md", "its address, on the loopback interface where none is given.", []string{"examples/lockstep-qemu.TestAnAddressOfThePageIsOneAtFirstSight"}},
	{"docs/security.md", "It takes no orders, and a site that a browser shows cannot read it", []string{
		"examples/lockstep-qemu.TestThePageTakesNoOrders", "examples/lockstep-qemu.TestThePageAnswersNoNameThatASiteCanArrange"}},
	{"docs/security.md", "A plain one has to be asked for by `-insecure`", []string{"examples/lockstep-qemu.TestWrongArgumentsAreSaid"}},
	{"docs/security.md", "it is for the user of the process alone", []string{"examples/lockstep-qemu.TestTheOperatorsSocketIsForItsOwnerAlone"}},
	{"docs/security.md", "which is made for that user alone if it is not there", []string{"examples/lockstep-qemu.TestTheOperatorsSocketIsForItsOwnerAlone"}},
	{"docs/security.md", "an old primary is refused", []string{"replication/nbd.TestEXPORTNAMEForClientsThatKnowNothingElse"}},
	{"docs/security.md", "a flood of SYNs takes no place of an established connection in the rewriter", []string{"colo/filter.TestAFloodOfSYNsTakesNoPlaceOfAConnection"}},
	{"docs/security.md", "make this host write to a disk, or run a guest, after the arbiter has given the guest to this host", []string{"replication.TestOnceStoppedThePrimaryIsRefused", "colo/protect.TestOldGenerationGetsNowhere"}},
	{"docs/security.md", "keep a goroutine of this process after the session.", []string{"colo.TestMain", "colo/protect.TestMain"}},
	{"docs/security.md", "one of an old generation is refused.", []string{"colo/protect.TestOldGenerationGetsNowhere"}},
	{"docs/security.md", "At most 256 connections are at that at one time", []string{"colo/protect.TestStrangersKeepNobodyOut"}},
	{"docs/security.md", "a forged RST counts only with the exact sequence number.", []string{"colo/filter.TestOnlyWhatTheGuestTakesMakesRoomForOthers", "colo/filter.TestWhatAStrangerSendsChangesNothing"}},
	{"docs/security.md", "makes the guests differ; the comparison finds that and asks for a checkpoint.", []string{"colo/compare.TestARefusalThatIsForgedBlindlyCostsACheckpointAndNothingElse"}},
	{"docs/security.md", "fill what holds its output (bounded;", []string{"colo/filter.TestFullBufferLeavesThePacketWithTheDevice", "colo/compare.TestLimitsHoldAndAskAndLoseNothing"}},
	{"docs/security.md", "What it puts into device state, memory or packets is bounded and checked on the other host", []string{
		"..TestWhatIsBoundedIsBoundedByTheCodeAndTested", "colo/standby.TestAHostileCheckpointIsRefusedAndChangesNothing", "colo/filter.TestBadFramesAreErrorsThatSayWhere"}},
	{"docs/security.md", "all of a checkpoint is decoded and checked before the guest is touched, and what fails is rolled back;", []string{"colo.TestCheckpointThatEndsAnywhereIsRefusedWhole"}},
	{"docs/security.md", "256 MiB each", []string{"..TestWhatIsBoundedIsBoundedByTheCodeAndTested"}},
	{"docs/security.md", "Every decoder has a fuzz target;", []string{"..TestEveryPackageThatBoundsAnInputHasAFuzzTarget"}},
	{"docs/security.md", "A plain connection has to be asked for by `PortConfig.Insecure`", []string{"colo/protect.TestWhatCannotWorkIsRefusedAtNew"}},
	{"docs/security.md", "`ServerConfig.TLS` (STARTTLS) with `RequireTLS`", []string{
		"replication/nbd.TestSTARTTLS", "replication/nbd.TestSecretsOfTheClearDoNotPassForTLS", "replication/nbd.TestNoOptionIsAnsweredBeforeTLSThatIsRequired"}},
	{"docs/operations.md", "how long an operation of the local disk may take before whoever stops replication, or takes over, waits for it no longer; a flush three times as long.", []string{
		"replication.TestACallEndsWithItsContextThoughTheDiskHangs", "replication.TestADiskThatIsOnlySlowIsNotGivenUp", "colo/protect.TestAnImageThatHangsHoldsUpNoStopOfAHostThatFollows"}},
	{"docs/security.md", "Memory is taken as bytes arrive, not as a length announces.", []string{"vmstate.TestHostileLengthsTakeLittleMemory"}},
	{"docs/security.md", "It can be slow or silent until the times of", []string{
		"colo.TestASlowPeerThatDoesNotBeatIsLost", "colo.TestSilentPeerIsNoticedWhereverItFallsSilent"}},
	{"docs/security.md", "its bytes must not crash it, exhaust it, or leave a guest half changed.", []string{
		"colo.TestBadCheckpointIsRefusedWholeAndFailoverIsStillPossible", "colo/standby.TestAHostileCheckpointIsRefusedAndChangesNothing", "..TestWhatIsBoundedIsBoundedByTheCodeAndTested"}},
	{"docs/security.md", "TLS 1.3 with certificates on both sides.", []string{
		"colo/protect.TestOnlyTheConfiguredHostGetsInByTLS"}},
	{"docs/security.md", "can make the host do TLS handshakes and read a hello of at most 64 KiB.", []string{
		"colo/protect.TestStrangersKeepNobodyOut", "colo/protect.TestWhatIsNoHelloIsRefused"}},
	{"docs/security.md", "a pair in step goes on without an answer, a lone host does not", []string{
		"colo/protect.TestPairGoesOnWithoutItsArbiterAndNobodyTakesOver", "colo/protect.TestALoneHostHoldsItsOutputWhileItsArbiterIsAway"}},
	{"docs/security.md", "It learns the hosts' names, which of them has the guest or has left it, and the number of the last checkpoint;", []string{
		"colo/protect.TestAnArbiterLearnsTheHostsAndTheCheckpointsAndNothingElse"}},

	{"docs/architecture.md", "A test compares the arrows with the imports of the code.", []string{"..TestThePictureShowsTheImports", "..TestArrowsThatFollowFromOthersAreLeftOut"}},
	{"docs/architecture.md", "it imports nothing of the library, and only `examples/lockstep-qemu` uses it.", []string{"..TestQuickackStandsAlone"}},
	{"docs/architecture.md", "The dotted arrow is that of a nested module", []string{"..TestTheDottedArrowIsThatOfANestedModule"}},
	{"docs/architecture.md", "**Heavy or foreign things are modules of their own**", []string{"..TestWhatIsHeavyOrForeignIsAModuleOfItsOwn"}},
	{"docs/architecture.md", "`kvm` and `colo` do not know each other", []string{"..TestKVMAndCOLODoNotKnowEachOther"}},
	{"docs/architecture.md", "**Decisions do no I/O.**", []string{"..TestDecisionsDoNoIO"}},
	{"docs/architecture.md", "tests walk them exhaustively or against a model, without a clock.", []string{
		"failover.TestEverySequenceOfEightCallsKeepsTheInvariants", "failover.TestNoSequenceOfEventsLetsTwoHostsActAsHolder", "failover.TestEveryRequestToEveryRecordFollowsTheRules",
		"colo/compare.TestNothingLeavesThatASurvivorWouldNotKnow", "colo/protect.TestEveryInputInEveryStateKeepsTheInvariants"}},
	{"docs/architecture.md", "**Nothing is applied before all of it is checked.**", []string{
		"colo.TestCheckpointThatEndsAnywhereIsRefusedWhole", "colo.TestBadCheckpointIsRefusedWholeAndFailoverIsStillPossible", "colo/standby.TestAHostileCheckpointIsRefusedAndChangesNothing"}},
	{"docs/architecture.md", "**Whoever calls Run owns the goroutines.**", []string{
		"colo.TestMain", "colo/protect.TestMain", "colo/proxy.TestMain", "colo/filter.TestMain", "event/qmp.TestMain", "failover.TestMain", "kvm.TestMain", "migrate.TestMain", "replication.TestMain", "replication/nbd.TestMain"}},
	{"docs/architecture.md", "The root module links gokvm and golang.org/x/sys.", []string{"..TestTheRootModuleDependsOnWhatTheREADMESays"}},
	{"docs/architecture.md", "`vmstate.Registry.Load` decodes and can roll back, `ram.Cache` stages beside the guest's memory, a `replication.Secondary` keeps pre-images.", []string{
		"vmstate.TestBadStatesAreRefusedAndUndone", "vmstate/ram.TestDiscardLeavesTheGuestAlone", "replication.TestFailoverUndoesThePrimarysWrites"}},
	{"docs/architecture.md", "all that it started has ended when that method, or the type's Close, returns.", []string{
		"colo.TestMain", "colo/protect.TestMain", "colo/proxy.TestMain", "colo/filter.TestMain", "colo/quickack.TestMain", "event/qmp.TestMain", "replication/nbd.TestMain"}},
}

func TestEveryPromiseOnRecordIsStillMadeAndStillTested(t *testing.T) {
	words, on := map[string]string{}, newTestOn(t)
	for _, p := range slices.Concat(promises, commentPromises) {
		if words[p.page] == "" {
			words[p.page] = prose(p.page, read(t, p.page))
		}
		if !strings.Contains(words[p.page], p.sentence) {
			t.Errorf("%s does not say %q any more: is it not promised, or only in other words?", p.page, p.sentence)
		}
		for _, name := range p.tests {
			dot := strings.LastIndex(name, ".")
			dir, test := name[:dot], name[dot+1:]
			on.want(dir, test, p.sentence)
		}
	}
}
