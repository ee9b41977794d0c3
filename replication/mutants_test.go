package replication

import (
	"testing"

	"github.com/gocolo/lockstep/internal/mutant"
)

// mutants are faults that the models find. The first ones are one of each kind. See
// TestMutants, which plants them.
var mutants = []mutant.Mutant{
	{
		What: "a write is counted before it is made",
		File: "stable.go",
		Old:  "\tn, err := s.Disk.WriteAt(p, off)\n\ts.wrote()\n",
		New:  "\ts.wrote()\n\tn, err := s.Disk.WriteAt(p, off)\n",
	},
	{
		What: "a sync that failed is forgotten",
		File: "stable.go",
		Old:  "\t\tif s.err != nil {\n\t\t\treturn s.err\n\t\t}\n\t\tif s.stable",
		New:  "\t\tif s.err != nil {\n\t\t\terr := s.err\n\t\t\ts.err = nil\n\t\t\treturn err\n\t\t}\n\t\tif s.stable",
	},
	{
		What: "a checkpoint does not wait for its disk",
		File: "secondary.go",
		Old:  "\tif err := s.syncDisk(); err != nil {\n\t\treturn err\n\t}\n\tif err := s.runFailed(); err != nil { // after the sync, as in Prepare",
		New:  "\tif err := s.runFailed(); err != nil { // after the sync, as in Prepare",
		// The other models come first, and cannot find it.
		Tests: []string{"-timeout=4m", "-run=^TestModelOfAPrimaryThatDoesNotFlush$", "-model.seeds=18000", "."},
	},
	{
		What: "a pre-image is not waited for",
		File: "hiddenlog.go",
		Old:  "\t\tif failed == nil {\n\t\t\tfailed = l.dev.Sync()\n\t\t}\n",
		New:  "",
	},
	{
		What: "a flush is answered by a sync that began before it",
		File: "stable.go",
		Old:  "\tbegan := s.done.Load()\n\top, err := s.flight.begin(opFlush)\n\tif err == nil {\n\t\terr = s.flight.end(op, s.Disk.Sync())\n\t}\n",
		New:  "\top, err := s.flight.begin(opFlush)\n\tif err == nil {\n\t\terr = s.flight.end(op, s.Disk.Sync())\n\t}\n\tbegan := s.done.Load()\n",
	},
	{
		What: "of a large write the first block alone is saved",
		File: "secondary_export.go",
		Old:  "if half, err = s.saveOld(off, n); err != nil {\n\t\t\treturn half, s.latch",
		New:  "if half, err = s.saveOld(off, min(n, 1)); err != nil {\n\t\t\treturn half, s.latch",
	},
	{
		What: "writes after a mark are not held",
		File: "forwarder_send.go",
		Old:  "\tif f.held {\n\t\tif k := len",
		New:  "\tif f.held && false {\n\t\tif k := len",
	},
	{
		What: "a mark does not wait for what is on its way",
		File: "primary.go",
		Old:  "return f.flush(ctx, true, p.syncLocal)",
		New:  "return p.syncLocal()",
	},
	{
		What: "what a secondary has lost with its process is not copied again",
		File: "peer.go",
		Old:  "\tr.dirty.Or(r.copied)\n",
		New:  "",
		// The models find it now and then.
		Tests: []string{"-run=CopiedToAHostThatWasLost", "."},
	},
	{
		What: "what the secondary may undo is not copied again",
		File: "peer.go",
		Old:  "[]*Bitmap{r.epoch, r.older}",
		New:  "[]*Bitmap{r.older}",
	},
	{
		What: "regions are not marked on stable storage",
		File: "peer.go",
		Old:  "return r.intent.ensure(off, n)",
		New:  "return nil",
	},
	{
		What: "writes across each other are sent at once",
		File: "forwarder_send.go",
		Old:  "\t\tif off < o.off+o.n && o.off < off+n {",
		New:  "\t\tif false {",
	},
	{
		What: "what the guest writes during a commit is not copied down",
		File: "secondary_io.go",
		Old:  "\t\t\ts.life.fallBehind(off, c)\n",
		New:  "",
	},
	{
		What: "a checkpoint is not recorded",
		File: "secondary.go",
		Old:  "if err := s.stable.setRunning(epoch, id); err != nil {",
		New:  "if err := error(nil); err != nil {",
	},
	// The models do not find the following.
	{
		What:  "what could not be recorded of a disk that failed is not remembered",
		File:  "metadata.go",
		Old:   "\tchange(&m.id, &m.peer)\n\tm.ahead = true\n",
		New:   "\tm.ahead = true\n",
		Tests: []string{"-run=AGuestIsBroughtAway|ForgesNoCopy", "."},
	},
	{
		What:  "a guest that is brought away does not descend from what a failed write may have left",
		File:  "metadata.go",
		Old:   "if m.tried != (Identity{}) {",
		New:   "if false {",
		Tests: []string{"-run=AGuestIsBroughtAway|ForgesNoCopy", "."},
	},
	{
		What:  "a secondary gets only what an account says that is on no stable storage",
		File:  "primary_identity.go",
		Old:   "\tif p.meta.isAhead() {",
		New:   "\tif false {",
		Tests: []string{"-run=AGuestIsBroughtAway|ForgesNoCopy", "."},
	},
	{
		What:  "a disk that has failed ends the run that brings its guest away",
		File:  "primary_io.go",
		Old:   "\tif p.evacuates.Load() {\n\t\treturn nil\n",
		New:   "\tif false {\n\t\treturn nil\n",
		Tests: []string{"-run=AGuestIsBroughtAway", "."},
	},
	{
		What:  "an empty metadata file is taken for one",
		File:  "metadata_file.go",
		Old:   "if st, err := f.Stat(); err != nil || st.Size() == 0 {",
		New:   "if st, err := f.Stat(); err != nil || st.Size() < 0 {",
		Tests: []string{"-run=AMetadataFileOfNothing", "."},
	},
	{
		What:  "a guest writes on that has gone on alone without a record",
		File:  "primary_stop.go",
		Old:   "p.resumed.Store(err != nil)",
		New:   "p.resumed.Store(false)",
		Tests: []string{"-run=GenerationCannotBeRecorded", "."},
	},
	{
		What:  "of a block that is sent as a whole only the guest's part is locked",
		File:  "primary_io.go",
		Old:   "p.locks.lock(from, to-from, false)",
		New:   "p.locks.lock(off, n+0*(from+to), false)",
		Tests: []string{"-run=ASecondaryOfLargerBlocks", "."},
	},
	{
		What:  "a small disk that its guest has rewritten is another one",
		File:  "journal.go",
		Old:   "case b.size < smallDisk:",
		New:   "case false:",
		Tests: []string{"-run=ASmallDisk", "."},
	},
	{
		What:  "a disk that goes on without the others of its guest does not say so",
		File:  "group.go",
		Old:   "\t\tif err != nil { // it is Stop's again",
		New:   "\t\tif false && err != nil { // it is Stop's again",
		Tests: []string{"-run=NotMixed", "."},
	},
	{
		What:  "the disks that are the evidence are recovered first",
		File:  "recover.go",
		Old:   "slices.Concat(ordered, starting, running)",
		New:   "slices.Concat(running, starting, ordered)",
		Tests: []string{"-run=InterruptedGoesOn", "."},
	},
	{
		What:  "a map is applied as far as it can be",
		File:  "recover.go",
		Old:   "if how == finishFailover {\n\t\terr = j.checkMap",
		New:   "if false {\n\t\terr = j.checkMap",
		Tests: []string{"-run=AMapThatCannotBe", "."},
	},
	{
		What:  "a record that a log has lost ends it",
		File:  "hiddenlog.go",
		Old:   "later > seq && le.Uint64",
		New:   "later < seq && le.Uint64",
		Tests: []string{"-run=RotsInTheMiddle", "."},
	},
	{
		What:  "records that are written together say of each other that they are stable",
		File:  "hiddenlog.go",
		Old:   "le.AppendUint64(buf, l.settled)",
		New:   "le.AppendUint64(buf, l.seq)",
		Tests: []string{"-run=WrittenTogether", "."},
	},
	{
		What:  "a superblock for which there was no room may count while the disk is changed",
		File:  "journal.go",
		Old:   "return j.store(j.super)",
		New:   "return nil",
		Tests: []string{"-run=ThereWasNoRoom", "."},
	},
	{
		What:  "a log that found no room goes on behind what it could not write",
		File:  "hiddenlog.go",
		Old:   "l.end, l.seq = at, l.settled",
		New:   "l.seq = l.settled",
		Tests: []string{"-run=FoundNoRoom", "."},
	},
	{
		What:  "zeroes take nothing of a log",
		File:  "primary_room.go",
		Old:   "err != nil || r.zeroes == 0 {",
		New:   "err != nil || true {",
		Tests: []string{"-run=ZeroesFillTheLog", "."},
	},
	{
		What:  "slots that were lent are not given back",
		File:  "overlay_fill.go",
		Old:   "\to.giveBack(lent)\n",
		New:   "",
		Tests: []string{"-run=Fill", "."},
	},
	{
		What:  "what was written while it was compared is called different",
		File:  "verify_online.go",
		Old:   "done := v.p.peer.changes.of(d[0], d[1])[0] == before[(d[0]-off)/ChunkSize] && ",
		New:   "done := len(before) > 0 && ",
		Tests: []string{"-run=AlwaysWritten", "."},
	},
	{
		What:  "what was copied while it was compared is called different",
		File:  "peer.go",
		Old:   "\tr.changes.count(off, n)\n\tr.copied.Set",
		New:   "\tr.copied.Set",
		Tests: []string{"-run=SynchronisedMeanwhile", "."},
	},
	{
		What:  "a chunk is locked for as long as the other side takes to be read",
		File:  "verify_online.go",
		Old:   "\t\tcase <-held.Done():\n\t\t\treturn false\n",
		New:   "",
		Tests: []string{"-run=DoesNotWaitForAVerification", "."},
	},
	{
		What:  "of two failures of a copy the first alone is told of",
		File:  "disk_failed.go",
		Old:   "publish(&l.metadata,",
		New:   "publish(&l.flush,",
		Tests: []string{"-run=BothFailures", "."},
	},
	{
		What:  "the same epoch of two starts is one checkpoint",
		File:  "recover.go",
		Old:   "return b.run != ID{} && o.run != ID{} && b.run != o.run",
		New:   "return false",
		Tests: []string{"-short", "-run=TwoStarts", "."},
	},
	{
		What:  "a journal does not know from which start its checkpoint comes",
		File:  "journal.go",
		Old:   "\tif b.run != (ID{}) {\n\t\tp[superHasRun] = 1",
		New:   "\tif false {\n\t\tp[superHasRun] = 1",
		Tests: []string{"-short", "-run=FromWhichStart|ASuperblock", "."},
	},
	{
		What:  "a disk that goes forward is of the generation that its journal has",
		File:  "recover.go",
		Old:   "\tif meta.kept() {\n\t\town :=",
		New:   "\tif false {\n\t\town :=",
		Tests: []string{"-short", "-run=RecoveryForward", "."},
	},
	{
		What:  "disks are not told of a start that they have missed",
		File:  "group.go",
		Old:   "\t\tif len(g) > 1 {\n\t\t\tg.tellMissed(i)",
		New:   "\t\tif false {\n\t\t\tg.tellMissed(i)",
		Tests: []string{"-short", "-run=AStartThatOneDisk", "."},
	},
	{
		What:  "a disk that lacked nothing stays at its older epoch",
		File:  "secondary_start.go",
		Old:   "\tif err := s.beginKept(); err != nil {\n\t\treturn err\n\t}\n",
		New:   "",
		Tests: []string{"-short", "-run=LackedNothing", "."},
	},
	{
		What:  "a growth is not in the journal before it is made",
		File:  "grow.go",
		Old:   "if err := j.growing(size); err != nil {",
		New:   "if err := error(nil); err != nil {",
		Tests: []string{"-short", "-run=Grow", "."},
	},
	{
		What:  "a primary grows past a secondary that is another process",
		File:  "grow.go",
		Old:   "if theirs.Copy != p.peer.run.Copy || theirs.instance != p.peer.instance {",
		New:   "if theirs.Copy != p.peer.run.Copy {",
		Tests: []string{"-short", "-run=Growth|Grows", "."},
	},
	{
		What:  "a checkpoint goes over the connection that a growth has replaced",
		File:  "primary.go",
		Old:   "if p.link.Load() != f { // the disk has grown",
		New:   "if false { // the disk has grown",
		Tests: []string{"-short", "-run=WhileADiskGrows", "."},
	},
	{
		What:  "what is read of a secondary that is gone is believed",
		File:  "verify_online.go",
		Old:   "if err := v.f.gone(); err != nil { // what was read",
		New:   "if err := v.f.gone(); false { // what was read",
		Tests: []string{"-short", "-run=ThatIsGone", "."},
	},
	{
		What:  "the generation of a start is recorded after it",
		File:  "secondary_start.go",
		Old:   "\tif err := s.mayGoForward(); err != nil {\n\t\treturn err\n\t}\n",
		New:   "",
		Tests: []string{"-short", "-run=RecoveryForward", "."},
	},
	{
		What:  "a disk that goes forward to a start keeps the start of before",
		File:  "recover.go",
		Old:   "b.epoch, b.id, b.run = 0, b.idForward(meta), b.start",
		New:   "b.epoch, b.id, b.run = 0, b.idForward(meta), b.run",
		Tests: []string{"-short", "-run=LackedNothing", "."},
	},
	{
		What:  "a checkpoint that another disk has made is undone",
		File:  "secondary_stop.go",
		Old:   "\tif !outrun {",
		New:   "\tif true {",
		Tests: []string{"-short", "-run=TwoHostsThatLose", "."},
	},
	{
		What:  "the start that a journal names counts after its disk was changed without it",
		File:  "recover.go",
		Old:   "if supers[i].left(d.disk) {",
		New:   "if false {",
		Tests: []string{"-short", "-run=KeepsNoOtherDisk", "."},
	},
	{
		What:  "a copy is repaired with what a disk reads as whose flush has failed",
		File:  "verify_online.go",
		Old:   "err != nil && v.cfg.Repair != RepairNone {",
		New:   "err != nil && false {",
		Tests: []string{"-short", "-run=WithWhatADisk", "."},
	},
	{
		What:  "a failover with something to copy is recorded as one without",
		File:  "commit.go",
		Old:   "\t\tlen(s.leavesInUse()) > 0 || s.syncDisk() != nil {",
		New:   "\t\ts.syncDisk() != nil {",
		Tests: []string{"-short", "-run=NothingToCopy", "."},
	},
	{
		What:  "a failover that could not be recorded is one",
		File:  "commit.go",
		Old:   "\t\treturn true, s.goesOnOverOverlays(err)",
		New:   "\t\t_ = err",
		Tests: []string{"-short", "-run=NothingToCopy", "."},
	},
	{
		What:  "what a secondary has behind the end of the primary's disk differs",
		File:  "sums.go",
		Old:   "\tif len(p) == ChunkSize {\n\t\treturn false",
		New:   "\tif true {\n\t\treturn false",
		Tests: []string{"-short", "-run=GrowsFirst", "."},
	},
}

// Planting them takes minutes, and is done now and then; that they can be is seen each time.
func TestEachMutantIsOneOfTheSourceAsItIs(t *testing.T) {
	for _, m := range mutants {
		if err := m.Check("."); err != nil {
			t.Error(err)
		}
	}
}
