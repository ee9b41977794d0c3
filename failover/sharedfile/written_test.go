package sharedfile

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
)

// The file that docs/operations.md has a person write, where the record was lost.
func TestARecordThatAPersonHasWrittenIsGoneOnFrom(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^    (state\.\d+)\n    (\{.*\})$`).FindSubmatch(page)
	if m == nil {
		t.Fatal("docs/operations.md does not say what to write")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, string(m[1])), append(m[2], '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	a, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	claim := failover.Claim{Holder: "a", Token: "token", Term: time.Minute}
	for claim.After = range uint64(10) {
		if claim.After == 7 {
			continue
		}
		if _, err := a.Acquire(t.Context(), claim); !errors.Is(err, failover.ErrRefused) {
			t.Errorf("a claim after generation %d: %v", claim.After, err)
		}
	}
	claim.After = 7
	if g, err := a.Acquire(t.Context(), claim); err != nil || g.Generation != 8 {
		t.Errorf("a claim after generation 7: generation %d, %v", g.Generation, err)
	}
}
