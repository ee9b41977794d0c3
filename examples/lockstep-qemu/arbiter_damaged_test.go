package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// A standby would find out when it is to go on.
func TestAStandbyTellsOfADamagedRecordAsItStarts(t *testing.T) {
	dir := qemutest.Dir(t)
	if err := os.WriteFile(filepath.Join(dir, "state.00000000000000000001"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, "standby", "-listen", "unix:"+filepath.Join(qemutest.Dir(t), "s"), "-state", qemutest.Dir(t), "-arbiter", "file:"+dir)
	eventually(t, "it says nothing", func() bool { return strings.Contains(p.errors(), "not an arbiter's record") })
}

func TestAStandbyIsToldOfAnAddressWithoutItsPort(t *testing.T) {
	for _, c := range []struct{ wrong, args string }{
		{"-listen 127.0.0.1", "-listen 127.0.0.1"},
		{"-listen ::1", "-listen ::1"},
		{"-listen tcp:there", "-listen tcp:there"},
		{"-control 10.0.0.1", "-listen there:1 -insecure -control 10.0.0.1"},
		{"-nbd 10.0.0.1", "-listen there:1 -disk a=b -nbd 10.0.0.1"},
	} {
		p := start(t, append([]string{"standby", "-state", "nowhere"}, strings.Fields(c.args)...)...)
		p.ends(exitUsage)
		if said := p.errors(); !strings.Contains(said, c.wrong+": the port is missing") {
			t.Errorf("%s: %s", c.args, said)
		}
	}
}
