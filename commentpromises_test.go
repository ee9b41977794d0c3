package lockstep_test

import "strings"

// commentPromises are sentences of package comments that promise something, as they begin, and
// the tests that fail where they are not kept.
var commentPromises = []promise{
	{"qemufile/doc.go", "Both directions keep the first error they meet.", []string{
		"qemufile.TestTheFirstWriteErrorSticks", "qemufile.TestEveryTruncationIsTold"}},
	{"qemufile/doc.go", "puts go nowhere, and nothing panics.", []string{"qemufile.TestTheFirstWriteErrorSticks", "qemufile.TestDamageIsReadAlikeFromEverySource"}},
	{"qemufile/doc.go", "say where in the stream they arose", []string{"qemufile.TestTheFirstWriteErrorSticks", "qemufile.TestEveryTruncationIsTold"}},
	{"qemufile/doc.go", "hands everything queued to the socket in one vectored write, so that a page is not copied on its way out;", []string{
		"qemufile.TestAFlushIsOneVectoredWrite", "qemufile.TestAReferenceIsReadWhenItIsSent", "qemufile.TestSocketsGetReferencesInOrder"}},
	{"qemufile/doc.go", "Neither allocates once it is made.", []string{"qemufile.TestSteadyStateAllocatesNothing"}},

	{"vmstate/doc.go", "It reads and writes the stream as QEMU does, byte for byte", []string{"vmstate.TestStreamsOfQEMUComeBackByteForByte"}},
	{"vmstate/doc.go", "those that a receiver needs before the live ones ([Entry].Early) have it among the START sections.", []string{"vmstate.TestEarlyDevicesAreSavedBeforeTheLiveOnes"}},
	{"vmstate/doc.go", "or [Registry.Rollback] puts every field back.", []string{"vmstate.TestRollbackRestoresEveryField"}},
	{"vmstate/doc.go", "A load that fails has rolled back already.", []string{"vmstate.TestBadStatesAreRefusedAndUndone", "vmstate.TestEveryTruncationUndoesTheLoad"}},
	{"vmstate/doc.go", "memory is taken as bytes arrive", []string{"vmstate.TestHostileLengthsTakeLittleMemory"}},
	{"vmstate/doc.go", "every error says in which section and at which offset", []string{"vmstate.TestBadStatesAreRefusedAndUndone", "vmstate.TestAnErrorInAPackageSaysWhereInTheStream"}},
	{"vmstate/doc.go", "Changed values of a device are encoded by [DeviceDesc.Encode].", []string{"vmstate.TestAChangedValueIsEncoded"}},
	{"vmstate/doc.go", "pass by as bytes, up to what looks like their end", []string{"vmstate.TestUnknownLiveDevicesPassByWithoutFooters", "vmstate.TestQEMUsDirtyBitmapsAreCarried"}},
	{"vmstate/doc.go", "only this device is not decoded: its section ends at its footer", []string{"vmstate.TestADeviceThatDisagreesWithItsDescriptionCostsOnlyItself"}},
	{"vmstate/doc.go", "A description whose text is broken is mended", []string{"vmstate.TestADescriptionIsRepairedDeviceByDevice"}},
	{"vmstate/doc.go", "which lack footers or the configuration, are recognised.", []string{"vmstate.TestQEMUsOldestStreamsComeBackByteForByte"}},
	{"vmstate/doc.go", "[Incoming] says which commands a destination may be given when", []string{"vmstate.TestIncomingFollowsTheOrderOfPostcopy"}},
	{"vmstate/doc.go", "[Switchover] when it may agree to the guest being stopped.", []string{"vmstate.TestSwitchoverWaitsForEveryDevice"}},
	{"vmstate/doc.go", "Here the methods of [ReturnWriter] do", []string{"vmstate.TestReturnWriter"}},

	{"migrate/doc.go", "A guest that misses page after page gets these alone, but for a piece of the rest now and then.", []string{"migrate.TestInABurstTheRestHasItsTurnNowAndThen"}},
	{"migrate/doc.go", "little more is on its way than keeps the link busy", []string{"migrate.TestThePacerKeepsALinkBusyAndItsQueueShort"}},
	{"migrate/doc.go", "What is asked for is sent before the rest.", []string{"vmstate/ram.TestALazySaverSendsWhatIsAskedForFirst"}},
	{"migrate/doc.go", "A channel that ends or lies ends the migration.", []string{
		"migrate.TestAChannelThatBreaksSpoilsTheMigrationAndNotTheGuest", "migrate.TestAChannelThatLiesIsRefused"}},
	{"migrate/doc.go", "whatever fails, it runs on there, and never at the destination.", []string{
		"migrate.TestOnlyOneSideHasTheGuestWhereverPrecopyBreaks", "migrate.TestAGuestWhoseStreamEndsInsteadOfItsStartDoesNotRun"}},
	{"migrate/doc.go", "the source runs it again only if the destination says that it failed", []string{
		"migrate.TestARefusedGuestRunsOnAtTheSource", "migrate.TestOnlyOneSideHasTheGuestWhereverPrecopyBreaks"}},
	{"migrate/doc.go", "With the capability return-path it runs the guest again if the connection breaks before it has heard SHUT", []string{
		"migrate.TestAQEMUThatHearsNothingRunsItsGuestIfItWaitedForAWord"}},
	{"migrate/doc.go", "asks its Reconnect for another connection, any number of times", []string{"migrate.TestAConnectionMayBreakAgainAndAgain"}},

	{"failover/doc.go", "no I/O, no clock, no goroutine.", []string{"..TestDecisionsDoNoIO"}},
	{"failover/doc.go", "so that active never overlaps with a load", []string{
		"failover.TestConcurrentRequestNeverOverlapsWithALoad", "failover.TestEverySequenceOfEightCallsKeepsTheInvariants"}},
	{"failover/doc.go", "a torn guest is never resumed and never takes over.", []string{"failover.TestTornGuestRefusesEverything"}},
	{"failover/doc.go", "The holder counts that term from before its request was sent, less a margin", []string{
		"failover.TestHolderStopsBeforeItsTermCountedFromTheRequest", "failover.TestLateAnswerCountsFromItsRequest"}},
	{"failover/doc.go", "So one has stopped before another begins, whatever is delayed or stopped in between", []string{"failover.TestNoSequenceOfEventsLetsTwoHostsActAsHolder"}},
	{"failover/doc.go", "the new generation refuses the secondary that it leaves behind", []string{
		"failover.TestEveryRequestToEveryRecordFollowsTheRules", "colo/protect.TestOldGenerationGetsNowhere"}},

	{"event/doc.go", "whose JSON is the data of the QMP event of that name.", []string{
		"event.TestEachEventHasItsGoldenLine", "event.TestWhatQEMUHasSaidIsTypedAndEncodesAsItSaidIt"}},
	{"event/doc.go", "so nothing is lost and nothing has to be closed", []string{"event.TestSubscribersSeeEventsInOrderOnThePublishersGoroutine"}},
	{"event/doc.go", "a subscriber that is slow slows the checkpoint down.", []string{"event.TestPublishersWaitForASubscriberThatSleeps"}},
	{"event/doc.go", "[Decode] goes the other way.", []string{"event.TestDecodeGivesBackWhatWasEncoded"}},
	{"event/doc.go", "checks that events come in an order that QEMU can produce", []string{"event.TestOrder", "event.TestWhatQEMUHasSaidIsInOrder"}},
	{"event/doc.go", "Neither has a clock or a goroutine", []string{"..TestDecisionsDoNoIO"}},

	{"colo/standby/doc.go", "exactly where its last whole checkpoint was.", []string{"colo/standby.TestAKilledPrimaryIsBroughtBackFromItsLastCheckpoint"}},
	{"colo/standby/doc.go", "Device sections are cut, and so checked, before the checkpoint is acknowledged.", []string{"colo/standby.TestAHostileCheckpointIsRefusedAndChangesNothing"}},
	{"colo/standby/doc.go", "What is left of a checkpoint that broke off is dropped.", []string{"colo/standby.TestABrokenCheckpointLeavesTheOneBefore"}},
	{"colo/standby/doc.go", "Both are pure.", []string{"..TestDecisionsDoNoIO"}},
	{"colo/standby/doc.go", "memory must be its only live section.", []string{"colo/standby.TestAnInitialMigrationThatCannotBeKeptIsRefused"}},
	{"colo/standby/doc.go", "so is a file of mapped-ram.", []string{"colo/standby.TestAMappedFileIsNoStream"}},
	{"colo/standby/doc.go", "those that Put writes lack too.", []string{"colo/standby.TestGuestsThatTheirDescriptionDoesNotFitAreKept"}},

	{"colo/metrics/metrics.go", "in the text format, version 0.0.4.", []string{"colo/metrics.TestPrometheusHasNothingAgainstIt"}},
	{"colo/metrics/metrics.go", "A guest and a mode are labels", []string{"colo/metrics.TestAPageOfMetrics"}},
}

// prose returns the words of a page, or those of the comments of a file of Go, with one
// space between two.
func prose(name, text string) string {
	if strings.HasSuffix(name, ".go") {
		var lines []string
		for line := range strings.SplitSeq(text, "\n") {
			if line, ok := strings.CutPrefix(line, "//"); ok {
				lines = append(lines, line)
			}
		}
		text = strings.Join(lines, "\n")
	}
	return strings.Join(strings.Fields(text), " ")
}
