//go:build mutation

package replication

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

var mutantCount = flag.Int("mutants", 4, "how many of the faults are planted, the first of the list; 0: all")

// mutants are faults: a text of the source, and what stands there instead. The
// first are of each kind one.
var mutants = []struct{ what, file, old, new string }{
	{"a write is counted before it is made", "stable.go",
		"\tn, err := s.Disk.WriteAt(p, off)\n\ts.wrote()\n", "\ts.wrote()\n\tn, err := s.Disk.WriteAt(p, off)\n"},
	{"a sync that failed is forgotten", "stable.go",
		"\t\tif s.err != nil {\n\t\t\treturn s.err\n\t\t}\n\t\tif s.stable", "\t\tif s.err != nil {\n\t\t\terr := s.err\n\t\t\ts.err = nil\n\t\t\treturn err\n\t\t}\n\t\tif s.stable"},
	{"a checkpoint does not wait for its disk", "secondary.go",
		"\tif err := s.syncDisk(); err != nil {\n\t\treturn err\n\t}\n\tif err := s.life.failed(); err != nil { // after the sync, as in Prepare", "\tif err := s.life.failed(); err != nil { // after the sync, as in Prepare"},
	{"a pre-image is not waited for", "hiddenlog.go",
		"\t\tif failed == nil {\n\t\t\tfailed = l.dev.Sync()\n\t\t}\n", ""},
	{"a flush is answered by a sync that began before it", "stable.go",
		"\tbegan := s.done.Load()\n\terr := s.Disk.Sync()\n", "\terr := s.Disk.Sync()\n\tbegan := s.done.Load()\n"},
	{"of a large write the first block alone is saved", "incoming.go",
		"if half, err = s.saveOld(off, n); err != nil {\n\t\t\treturn half, s.latch", "if half, err = s.saveOld(off, min(n, 1)); err != nil {\n\t\t\treturn half, s.latch"},
	{"writes after a mark are not held", "forwarder.go",
		"\tif f.held {\n\t\tif k := len", "\tif f.held && false {\n\t\tif k := len"},
	{"a mark does not wait for what is on its way", "primary.go",
		"return f.flush(ctx, true, p.syncLocal)", "return p.syncLocal()"},
	{"what a secondary has lost with its process is not copied again", "peer.go",
		"\tr.dirty.Or(r.copied)\n", ""},
	{"what the secondary may undo is not copied again", "peer.go",
		"[]*Bitmap{r.epoch, r.older}", "[]*Bitmap{r.older}"},
	{"regions are not marked on stable storage", "peer.go",
		"return r.intent.ensure(off, n)", "return nil"},
	{"writes across each other are sent at once", "forwarder.go",
		"\t\tif off < o.off+o.n && o.off < off+n {", "\t\tif false {"},
	{"what the guest writes during a commit is not copied down", "secondary_io.go",
		"\t\t\ts.life.fallBehind(off, c)\n", ""},
	{"a checkpoint is not recorded", "secondary.go",
		"if err := s.stable.setRunning(epoch, s.identityAt(epoch)); err != nil {", "if err := error(nil); err != nil {"},
}

// foundBy is the test for a fault that the others cannot find, so that it does not
// come last.
var foundBy = map[string]string{
	"a checkpoint does not wait for its disk": "^TestModelOfAPrimaryThatDoesNotFlush$",
}

// TestMutants plants faults in the source, one at a time, and wants the models
// to find each, most of whose time is the compiler's. All take minutes:
// go test -tags mutation -run TestMutants -mutants 0.
func TestMutants(t *testing.T) {
	dir := t.TempDir()
	wd, err := os.Getwd()
	must(t, err)
	for i, m := range mutants {
		if *mutantCount > 0 && i == *mutantCount {
			break
		}
		t.Run(m.what, func(t *testing.T) {
			path := filepath.Join(wd, m.file)
			source, err := os.ReadFile(path)
			must(t, err)
			if n := strings.Count(string(source), m.old); n != 1 {
				t.Fatalf("%s has the text %d times: this mutant is to be brought up to date", m.file, n)
			}
			mutant := filepath.Join(dir, m.file)
			must(t, os.WriteFile(mutant, []byte(strings.Replace(string(source), m.old, m.new, 1)), 0o600))
			overlay := filepath.Join(dir, "overlay.json")
			j, err := json.Marshal(map[string]any{"Replace": map[string]string{path: mutant}})
			must(t, err)
			must(t, os.WriteFile(overlay, j, 0o600))
			run := foundBy[m.what]
			if run == "" {
				run = "^TestModel"
			}
			cmd := exec.Command("go", "test", "-count=1", "-vet=off", "-timeout=4m", "-overlay="+overlay, "-failfast", "-run="+run, "-model.seeds=18000", ".")
			out, err := cmd.CombinedOutput()
			switch {
			case err == nil:
				t.Errorf("nobody finds it:\n%s", out)
			case !strings.Contains(string(out), "seed"):
				t.Errorf("it does not come to a trial: %v\n%s", err, out)
			default:
				for line := range strings.Lines(string(out)) {
					if strings.Contains(line, "seed") {
						t.Log(strings.TrimSpace(line))
						break
					}
				}
			}
		})
	}
}
