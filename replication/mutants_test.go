package replication

import (
	"testing"

	"github.com/gocolo/lockstep/internal/mutant"
)

// mutants are faults that the models find. The first are of each kind one. See
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
		Old:  "\tif err := s.syncDisk(); err != nil {\n\t\treturn err\n\t}\n\tif err := s.life.failed(); err != nil { // after the sync, as in Prepare",
		New:  "\tif err := s.life.failed(); err != nil { // after the sync, as in Prepare",
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
		Old:  "\tbegan := s.done.Load()\n\terr := s.Disk.Sync()\n",
		New:  "\terr := s.Disk.Sync()\n\tbegan := s.done.Load()\n",
	},
	{
		What: "of a large write the first block alone is saved",
		File: "incoming.go",
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
		Old:  "if err := s.stable.setRunning(epoch, s.identityAt(epoch)); err != nil {",
		New:  "if err := error(nil); err != nil {",
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
