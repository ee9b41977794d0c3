//go:build mutation

package protect

import (
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var mutantSeeds = flag.String("mutant.seeds", "600", "how many seeds TestMutants gives the simulator for each fault")

// mutants are faults: a text of the source, and what stands there instead.
var mutants = []struct{ what, file, old, new string }{
	{"a grant lasts longer than its term", "failover/holder.go",
		"sent.Add(term - Margin(term))", "sent.Add(2 * term)"},
	{"a renewal counts from its answer", "failover/store.go",
		"\treturn g, err\n}\n\n// Release", "\tg.Sent = time.Now()\n\treturn g, err\n}\n\n// Release"},
	{"an old copy is granted the guest", "failover/record.go",
		"case r.Generation > c.After:", "case false:"},
	{"a secondary does not keep its promise", "colo/protect/session.go",
		"wait = time.Until(s.peer.pledge)", "wait = 0"},
	{"a primary that is refused goes on", "colo/protect/session.go",
		"\tgeneration, err := j.claim(ctx, s, c)\n\tif err != nil {", "\tgeneration, err := j.claim(ctx, s, c)\n\tif err != nil && s.primary == nil {"},
	{"a pause does not ask the arbiter", "colo/protect/verbs.go",
		"\terr = j.order(ctx, verb, s.peer.generation)\n", "\terr = nil\n"},
	{"a packet leaves through a shut gate", "colo/protect/nic.go",
		"for !g.gate.Open() {", "for false {"},
	{"output leaves before its checkpoint is there", "colo/filter/buffer.go",
		"b.freed, b.since = m.before, m.since", "b.freed, b.since = b.taken, m.since"},
	{"a checkpoint forgets the output that it lets go", "colo/filter/buffer_state.go",
		"\tb.own.each(int(upto.n-b.gone.n), m.add)\n", "\t_ = upto\n"},
	{"a host that leaves lets its guest wait for its disk", "colo/protect/job.go",
		"\tj.fenceDisks()\n\tif j.vm", "\tif j.vm"},
	{"output leaves in which the guests differ", "colo/compare/other.go",
		"p.VNetHdr != s.VNetHdr || !bytes.Equal(p.Payload(), s.Payload())", "p.VNetHdr != s.VNetHdr"},
	{"a disk below another asks the gate as well", "colo/protect/disk_side.go",
		"b.led.Load() || b.Gate.Open()", "b.Gate.Open()"},
	{"a primary whose disk has failed leaves its guest to a secondary that is dead", "colo/protect/disk_failed.go",
		"if !j.takenOver(waiting, s) {\n\t\treturn context.Cause(ctx)", "if !j.takenOver(waiting, s) {\n\t\treturn why"},
	{"a secondary whose primary has died leaves the guest to it", "colo/protect/session.go",
		"\t\t\tj.hearOut(ctx, s)\n\t\t}", "\t\t\tif j.hearOut(ctx, s); s.peer.gone {\n\t\t\t\treturn failover.ErrRefused\n\t\t\t}\n\t\t}"},
	{"a primary leaves what it has released to a host that has died", "colo/protect/session.go",
		"if j.handedOver(ctx, s) {", "if j.handedOver(ctx, s) || s.peer.gone {"},
	{"an error of long ago keeps a secondary from its claim", "colo/protect/session.go",
		"if err := j.keepPromise(ctx, s); err != nil {", "if err := errors.Join(j.keepPromise(ctx, s), j.Query().LastError); err != nil {"},
	{"a guest does not leave a disk that has failed", "colo/protect/disk_side.go",
		"PermitOutdated: true, Evacuate: true, Gate", "PermitOutdated: true, Gate"},
}

// What a run says when it finds something. A bubble in which nothing can go on ends
// in a panic.
var found = regexp.MustCompile(`seed \d+(: deadlock: .*)?$`)

// TestMutants plants faults in the source, one at a time, and wants the simulator to
// find each. It takes minutes: go test -tags mutation -run TestMutants -timeout 30m.
func TestMutants(t *testing.T) {
	dir := t.TempDir()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mutants {
		t.Run(m.what, func(t *testing.T) {
			path := filepath.Join(root, m.file)
			source, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(source), m.old); n != 1 {
				t.Fatalf("%s has the text %d times: this mutant is to be brought up to date", m.file, n)
			}
			mutant, overlay := filepath.Join(dir, filepath.Base(m.file)), filepath.Join(dir, "overlay.json")
			j, err := json.Marshal(map[string]any{"Replace": map[string]string{path: mutant}})
			if err != nil {
				t.Fatal(err)
			}
			for name, b := range map[string][]byte{mutant: []byte(strings.Replace(string(source), m.old, m.new, 1)), overlay: j} {
				if err := os.WriteFile(name, b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("go", "test", "-count=1", "-timeout=9m", "-overlay="+overlay, "-failfast", "-run=^TestSimulatedFaults$", ".", "-seeds="+*mutantSeeds)
			out, err := cmd.CombinedOutput()
			what := ""
			for line := range strings.Lines(string(out)) {
				if what == "" && found.MatchString(strings.TrimSpace(line)) {
					what = strings.TrimSpace(line)
				}
			}
			switch {
			case err == nil:
				t.Errorf("nobody finds it:\n%s", out)
			case what == "":
				t.Errorf("it does not come to a trial: %v\n%s", err, out)
			default:
				t.Log(what)
			}
		})
	}
}
