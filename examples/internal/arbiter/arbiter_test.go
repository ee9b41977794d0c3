package arbiter

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/examples/internal/arbiter/arbitertest"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	arbitertest.Main()
	goleak.VerifyTestMain(m)
}

func TestWhatNamesNoArbiterIsAnErrorThatSaysWhat(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := Check("etcd:a:2379", ""); err == nil || !strings.Contains(err.Error(), "want store:lockstep-etcd -endpoints a:2379 -key KEY") {
		t.Errorf("a guest without a name: %v", err)
	}
	if err := Check("a:2379", ""); err == nil || !strings.Contains(err.Error(), "want file:DIR or store:COMMAND, of") {
		t.Errorf("a guest without a name is offered what it cannot have: %v", err)
	}
	if err := Check("file:/dev/null/db1", ""); err == nil || strings.Contains(err.Error(), "which both hosts reach") {
		t.Errorf("what has the right form is asked for again: %v", err)
	}
	for s, want := range map[string]string{
		"":                   "want file:DIR",
		"file:":              "want file:DIR",
		"/shared/db1":        "want file:DIR",
		"ask-somebody":       "want file:DIR",
		"file:/dev/null/db1": "not a directory",
		"zookeeper:a:2181":   "want file:DIR",
		"etcd:":              "want file:DIR",
		"etcd:a,b:2379":      `"a" is not the HOST:PORT of a member`,
		"etcd://a:2379":      `"//a:2379" is not the HOST:PORT of a member`,
		"etcd:a:2379":        "cd failover/etcd && go install ./lockstep-etcd",
		"store: ":            "want file:DIR",
		"store:nowhere -key": `"nowhere": executable file not found`,
	} {
		if a, _, err := Open(s, "db1", nil); err == nil || a != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", s, err, want)
		}
		if err := Check(s, "db1"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not wrong: %v", s, err)
		}
	}
}

func TestAProgramIsHeardByTheLine(t *testing.T) {
	var heard []string
	l := &lines{say: func(line string) { heard = append(heard, line) }}
	for _, s := range []string{"one\ntw", "o\n", strings.Repeat("x", 2*maxLine), "y\n", "no end"} {
		if n, err := l.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	if diff := cmp.Diff([]string{"one", "two", strings.Repeat("x", maxLine)}, heard); diff != "" {
		t.Error(diff)
	}
}

// An arbiter of each form grants what another one of the same name then says it has granted.
func TestEachFormNamesOnePlaceForBothHosts(t *testing.T) {
	require.Outside(t, require.Processes)
	dir, bin := t.TempDir(), t.TempDir()
	script := "#!/bin/sh\n[ \"$*\" = '-endpoints a:2379,https://b:2379 -key /lockstep/db1' ] || exit 9\nexec " + arbitertest.Command(t, dir+"/etcd") + "\n"
	if err := os.WriteFile(filepath.Join(bin, etcdProgram), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, s := range []string{"file:" + dir + "/file", "etcd:a:2379,https://b:2379", "store:" + arbitertest.Command(t, dir+"/store")} {
		if err := Check(s, "db1"); err != nil {
			t.Errorf("%s: %v", s, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		open := func() (failover.Arbiter, func()) {
			a, end, err := Open(s, "db1", func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			return a, end
		}
		here, endHere := open()
		there, endThere := open()
		g, err := here.Acquire(ctx, failover.Claim{Holder: "a", Token: "t", Term: time.Minute})
		if err != nil || g.Generation != 1 {
			t.Fatalf("%s: %+v, %v", s, g, err)
		}
		if r, err := there.Record(ctx); err != nil || r.Holder != "a" || r.Generation != 1 {
			t.Errorf("%s: the other host reads %+v, %v", s, r, err)
		}
		endHere()
		endThere()
		cancel()
	}
}
