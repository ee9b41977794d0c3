package main

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

// held makes an image on which a generation is recorded; 0: none is.
func held(t *testing.T, name string, generation uint64, outdated bool) {
	t.Helper()
	f, err := replication.CreateFile(name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Metadata()
	if err == nil {
		err = m.Hold(generation)
	}
	if err == nil && outdated {
		err = m.Outdate()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, name string) uint64 {
	t.Helper()
	f, err := replication.OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := f.Metadata()
	if err != nil {
		t.Fatal(err)
	}
	return m.Held()
}

func TestHoldRecordsTheGenerationThatAnImageWaitsFor(t *testing.T) {
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	try := func(args ...string) (string, error) {
		var out bytes.Buffer
		err := run(context.Background(), append([]string{"hold"}, args...), nil, &out, false)
		return out.String(), err
	}
	held(t, path("root"), 4, false)
	held(t, path("data"), 4, false)
	held(t, path("new"), 0, false)
	held(t, path("old"), 4, true)
	for name, args := range map[string][]string{
		"an older copy":                  {"-generation", "6", path("root")},
		"a generation that is over":      {"-generation", "3", path("root")},
		"one that no host has had":       {"-generation", "5", path("root"), path("new")},
		"one that starts no guest":       {"-generation", "5", path("root"), path("old")},
		"one that is not there":          {"-generation", "5", path("root"), path("none")},
		"the same one twice":             {"-generation", "5", path("root"), path("root")},
		"one that another process holds": nil,
	} {
		if args == nil {
			f, err := replication.OpenFile(path("data"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			args = []string{"-generation", "5", path("root"), path("data")}
			_, err = try(args...)
			f.Close()
			if !errors.Is(err, replication.ErrLocked) {
				t.Errorf("%s: %v", name, err)
			}
		} else if _, err := try(args...); err == nil || errors.Is(err, cli.ErrWrong) {
			t.Errorf("%s: %v", name, err)
		}
		if n := holds(t, path("root")); n != 4 {
			t.Fatalf("%s: it holds %d afterwards", name, n)
		}
	}
	for range 2 { // the second is one after a first that was cut off
		if out, err := try("-generation", "5", path("root"), path("data")); err != nil || !strings.Contains(out, "generation 5") {
			t.Errorf("%v: %s", err, out)
		}
	}
	if a, b := holds(t, path("root")), holds(t, path("data")); a != 5 || b != 5 {
		t.Errorf("they hold %d and %d", a, b)
	}
}
