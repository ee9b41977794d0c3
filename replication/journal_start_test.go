package replication

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"
)

// A superblock that was written before runs had names tells as much as it did: all but two of its checksums, and a start
// that was made and followed by no checkpoint yet as that run.
func TestASuperblockOfBeforeRunsHadNamesIsRead(t *testing.T) {
	p, err := os.ReadFile("testdata/superblocks-before-runs.hex")
	must(t, err)
	lines := strings.Fields(string(p))
	want := superblock{
		seq: 7, state: Running, size: 1 << 20, nonce: [16]byte{1, 2, 3}, name: ID{9}, hidden: 1 << 20, active: 1 << 21,
		id: Identity{Disk: ID{5}, Copy: ID{6}, Generation: Generation{2, 3}},
	}
	want.print.n = fingerprintBlocks
	for i := range want.print.at {
		want.print.at[i] = fingerprintBlock{uint32(i), uint32(i)*3 + 1}
	}
	started, pending := want, want
	started.start, started.run = ID{0xaa}, ID{0xaa}
	pending.start, pending.pending = ID{0xaa}, true
	for i, want := range []superblock{want, started, pending} {
		p, err := hex.DecodeString(lines[i])
		must(t, err)
		var got superblock
		if !got.decode(p) || got != want {
			t.Errorf("line %d: %+v, want %+v", i, got, want)
		}
	}
}

// The name of a run stays with the checkpoints after its start, and with a stop, and is that of no start that was not made.
func TestAJournalKnowsFromWhichStartItsCheckpointComes(t *testing.T) {
	hidden, active := newFake(minJournal, 0), newFake(minJournal, 0)
	j, err := OpenJournal(hidden, active)
	must(t, err)
	id, one, two := Identity{Disk: ID{5}, Copy: ID{6}}, ID{1}, ID{2}
	for _, step := range []struct {
		what string
		do   func() error
		want ID
	}{
		{"a start alone", func() error { return j.setStarted(id) }, ID{}},
		{"a start that is prepared", func() error { return j.setStarting(one) }, ID{}},
		{"and made", func() error { return j.setStarted(id) }, one},
		{"a checkpoint", func() error { return j.setRunning(1, id) }, one},
		{"another start that is prepared", func() error { return j.setStarting(two) }, one},
		{"and is not made", j.setBack, one},
		{"a stop", func() error { return j.setDone(id) }, one},
		{"a checkpoint that is kept", func() error { return j.setRunning(1, id) }, one},
		{"one that is given up", func() error { return j.setForgotten(id) }, ID{}},
		{"the other start, made", func() error {
			must(t, j.setStarting(two))
			return j.setStarted(id)
		}, two},
		{"a failover", func() error { return j.setFailover(newOverlay("active", testSize, testSize, newMemorySlots(testSize))) }, two},
		{"that is complete", func() error { return j.setDone(id) }, two},
		{"a start alone again", func() error { return j.setStarted(id) }, ID{}},
	} {
		must(t, step.do())
		again, err := OpenJournal(hidden, active)
		must(t, err)
		if again.super.run != step.want {
			t.Errorf("%s: the run is %v, want %v", step.what, again.super.run, step.want)
		}
	}
}
