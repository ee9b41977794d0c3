package arbiter

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/program"
	"github.com/gocolo/lockstep/failover/sharedfile"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// Started by a test, this binary is lockstep-etcd over a directory.
const directory = "LOCKSTEP_TEST_DIRECTORY"

func TestMain(m *testing.M) {
	if dir := os.Getenv(directory); dir != "" {
		store, err := sharedfile.Open(dir)
		if err != nil || program.Serve(context.Background(), os.Stdin, os.Stdout, store) != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func TestWhatNamesNoArbiterIsAnErrorThatSaysWhat(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, _, err := Open("etcd:a:2379", "", nil); err == nil || !strings.Contains(err.Error(), "want store:lockstep-etcd -endpoints a:2379 -key KEY") {
		t.Errorf("a guest without a name: %v", err)
	}
	for s, want := range map[string]string{
		"":                   "want file:DIR",
		"file:":              "want file:DIR",
		"/shared/db1":        "want file:DIR",
		"ask-somebody":       "want file:DIR",
		"zookeeper:a:2181":   "want file:DIR",
		"etcd:":              "want file:DIR",
		"etcd:a,b:2379":      `"a" is not the HOST:PORT of a member`,
		"etcd:a:2379":        "cd failover/etcd && go install ./lockstep-etcd",
		"store: ":            "want file:DIR",
		"store:nowhere -key": `"nowhere": executable file not found`,
	} {
		if a, run, err := Open(s, "db1", nil); err == nil || a != nil || run != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", s, err, want)
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
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	script := "#!/bin/sh\n[ \"$*\" = '-endpoints a:2379,https://b:2379 -key /lockstep/db1' ] || exit 9\n" + directory + "=" + dir + "/etcd exec " + self + "\n"
	if err := os.WriteFile(filepath.Join(bin, etcdProgram), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, s := range []string{"file:" + dir + "/file", "etcd:a:2379,https://b:2379", "store:/usr/bin/env " + directory + "=" + dir + "/store " + self} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var ended []chan error
		open := func() failover.Arbiter {
			a, run, err := Open(s, "db1", func(string) {})
			if err != nil {
				t.Fatal(err)
			}
			if run != nil {
				done := make(chan error, 1)
				ended = append(ended, done)
				go func() { done <- run(ctx) }()
			}
			return a
		}
		here, there := open(), open()
		g, err := here.Acquire(ctx, failover.Claim{Holder: "a", Token: "t", Term: time.Minute})
		if err != nil || g.Generation != 1 {
			t.Fatalf("%s: %+v, %v", s, g, err)
		}
		if r, err := there.Record(ctx); err != nil || r.Holder != "a" || r.Generation != 1 {
			t.Errorf("%s: the other host reads %+v, %v", s, r, err)
		}
		cancel()
		for _, done := range ended {
			<-done
		}
	}
}
