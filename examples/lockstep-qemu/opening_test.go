package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// An operator has to know which option is meant, and what to do about it.
func TestAPathThatCannotBeUsedIsToldWithItsOptionAndWhatToDo(t *testing.T) {
	dir := qemutest.Dir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	state := filepath.Join(dir, "state")
	disk := []string{"standby", "-listen", "unix:" + dir + "/s", "-insecure", "-state", state, "-nbd", "unix:" + dir + "/n", "-disk"}
	for _, c := range []struct {
		args   []string
		status int
		want   []string
	}{
		{append(disk, "d0="+dir), exitFailed, []string{"-disk d0: ", "it is a directory: give a file"}},
		{append(disk, "d0="+dir+"/none"), exitFailed, []string{"-disk d0: ", "make it first", "truncate -s SIZE " + dir + "/none"}},
		{[]string{"standby", "-listen", "unix:" + dir + "/s", "-insecure", "-state", file}, exitFailed, []string{"-state: ", "give a directory"}},
		{[]string{"standby", "-listen", "unix:" + dir + "/s", "-insecure", "-state", state, "-arbiter", "file:" + file}, exitUsage, []string{"-arbiter file:" + file + ": ", "give a directory"}},
		{[]string{"standby", "-listen", "unix:" + dir + "/s", "-insecure", "-state", state, "-arbiter", "file:" + dir + "/none/a"}, exitUsage, []string{"-arbiter file:" + dir + "/none/a: ", "mount what both hosts reach"}},
	} {
		p := start(t, c.args...)
		p.ends(c.status)
		for _, words := range c.want {
			if said := p.errors(); strings.Count(said, words) != 1 {
				t.Errorf("%q is not once in: %s", words, said)
			}
		}
	}
}
