package qmp_test

import (
	"cmp"
	"context"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// A monitor serves the QMP client of Ganeti, a manager of clusters of QEMUs, as it
// is in Debian's package ganeti-3.0. The package need not be installed: GANETI may
// name a directory that it was unpacked to.
func TestTheClientOfGanetiSteersAHost(t *testing.T) {
	python := require.Program(t, "ganeti", "python3")
	file := cmp.Or(os.Getenv("GANETI"), "/") + "/usr/share/ganeti/3.0/ganeti/hypervisor/hv_kvm/monitor.py"
	if _, err := os.Stat(file); err != nil {
		require.Missing(t, "ganeti", err)
	}
	_, s := newHost()
	addr := listen(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, python, "testdata/ganeti.py", file, addr).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{
		"version 7 2 22\nstatus running\nstatus paused\nstatus running\n",
		"no-such QmpCommandNotSupported ",
		"Job not found (GenericError)",
		"Parameter 'x' is unexpected (GenericError)",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
}
