package replay

import (
	"encoding/json"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// The lines are those of one version of Go. With another, somebody has to look.
func TestOverlayKnowsThisToolchain(t *testing.T) {
	require.Outside(t, require.Processes)
	if !strings.HasPrefix(runtime.Version(), "go1.26") {
		t.Skipf("the changes are for Go 1.26, this is %s", runtime.Version())
	}
	for _, exact := range []bool{false, true} {
		checkOverlay(t, exact)
	}
}

func checkOverlay(t *testing.T, exact bool) {
	t.Helper()
	changes := days
	if exact {
		changes = slices.Concat(days, exactly)
	}
	path, err := WriteOverlay(t.TempDir(), exact)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var overlay struct{ Replace map[string]string }
	if err := json.Unmarshal(b, &overlay); err != nil {
		t.Fatal(err)
	}
	files := map[string]bool{}
	for _, c := range changes {
		files[c.file] = true
	}
	if len(overlay.Replace) != len(files) {
		t.Errorf("%d files are replaced, not %d", len(overlay.Replace), len(files))
	}
	for from, to := range overlay.Replace {
		source, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			if strings.HasSuffix(from, "/"+c.file) && !strings.Contains(string(source), c.new) {
				t.Errorf("%s: %s is not in it", c.file, c.why)
			}
		}
	}
}
