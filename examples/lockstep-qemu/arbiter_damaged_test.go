package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/qemutest"
)

// A standby whose arbiter has a record that is damaged would find out when it is to go on.
func TestADamagedRecordOfAnArbiterIsToldOfBeforeItIsNeeded(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"it is whole":       func(b []byte) []byte { return b },
		"it is cut off":     func(b []byte) []byte { return b[:20] },
		"it is empty":       func([]byte) []byte { return nil },
		"a bit has flipped": func(b []byte) []byte { b[strings.Index(string(b), "generation")] ^= 4; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var said printed
			p := &printer{terminal: terminal{out: &said, err: &said}}
			arb, end, err := openArbiter("file:"+dir, p)
			if err != nil {
				t.Fatal(err)
			}
			defer end()
			if _, err := arb.Acquire(t.Context(), failover.Claim{Holder: "a", Token: "t", Term: time.Second}); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(dir, "state.00000000000000000001")
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			tellDamaged(t.Context(), arb, p)
			want := 1
			if name == "it is whole" {
				want = 0
			}
			if n := said.count(file + ": failover: not an arbiter's record"); n != want || said.count("written the record anew") != want {
				t.Errorf("that was said %d times, want %d:\n%s", n, want, said.b.String())
			}
		})
	}
}

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
