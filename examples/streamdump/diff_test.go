package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestTwoStreamsAreCompared(t *testing.T) {
	pc, longer := file(t, "pc.mig"), file(t, "pc-piix4-longer.mig")
	for i, x := range []struct {
		name   string
		args   []string
		status int
		say    []string
	}{
		{"the same", []string{pc, pc}, 0, []string{"equal: a destination would hold the same", " would load "}},
		{"sent otherwise", []string{pc, file(t, "mapped-ram.mig")}, 0, []string{"equal"}},
		{"through gzip and libvirt", []string{file(t, "libvirt.save"), file(t, "none.mig.gzipped")}, 0, []string{"equal"}},
		{"a longer device", []string{pc, longer}, 1, []string{"layout 0000:00:01.3/piix4_pm: 2432 bytes | 2440 bytes", "might not load", "Missing section footer for 0000:00:01.3/piix4_pm"}},
		{"other machines", []string{pc, file(t, "none-padding.mig")}, 1, []string{"machine: pc-i440fx-7.2 | none", "would not load", `Unknown ramblock "pc.ram"`}},
		{"memory that did not come", []string{pc, file(t, "multifd.mig")}, 1, []string{"pages pc.ram: 10 differ:"}},
	} {
		a := dumpFile(t, append([]string{"-diff"}, x.args...)...)
		if a.status != x.status {
			t.Errorf("%s: status %d, %s%s", x.name, a.status, a.stdout, a.stderr)
		}
		for _, say := range x.say {
			if !strings.Contains(a.stdout, say) {
				t.Errorf("%s: %q is not in\n%s", x.name, say, a.stdout)
			}
		}
		if testing.Short() && i%3 != 0 {
			continue // as JSON only these
		}
		a = dumpFile(t, append([]string{"-diff", "-json"}, x.args...)...)
		var c comparison
		if err := json.Unmarshal([]byte(a.stdout), &c); err != nil || c.Equal != (x.status == 0) || a.status != x.status || c.Loads == "" {
			t.Errorf("%s: %v, status %d, %s", x.name, err, a.status, a.stdout)
		}
	}
	if a := dumpFile(t, "-diff", pc, file(t, "multifd.mig")); !strings.Contains(a.stderr, "14 of 1106 pages did not come") {
		t.Errorf("what is missing is not said: %s", a.stderr)
	}
}

func TestADestinationsOwnStreamTellsWhetherItWouldLoad(t *testing.T) {
	pc := file(t, "pc.mig")
	if a := dumpFile(t, "-against", pc, pc); a.status != 0 || !strings.Contains(a.stdout, "would load") {
		t.Errorf("its own: %d %s", a.status, a.stdout)
	}
	a := dumpFile(t, "-against", file(t, "pc-i440fx-2.3.mig"), pc)
	if a.status != 1 || !strings.Contains(a.stdout, "would not load") || !strings.Contains(a.stdout, "QEMU: Unknown savevm section type 7") {
		t.Errorf("an older machine: %d %s", a.status, a.stdout)
	}
	if a := dumpFile(t, "-json", "-against", pc, file(t, "pc-no-footers.mig")); a.status != 1 || !strings.Contains(a.stdout, `"loads":"no"`) || !strings.Contains(a.stdout, `Missing section footer for ram`) {
		t.Errorf("without footers: %d %s", a.status, a.stdout)
	}
}

func TestComparingRefusesWhatItCannotDo(t *testing.T) {
	pc := file(t, "pc.mig")
	for _, x := range []struct {
		args   []string
		status int
		say    string
	}{
		{[]string{"-diff", pc}, 2, "wants two files"},
		{[]string{"-diff", "-against", pc, pc, pc}, 2, "two ways"},
		{[]string{"-diff", "-verify", pc, pc}, 2, "go with"},
		{[]string{"-diff", pc, filepath.Join("testdata", "nothing")}, 1, "no such file"},
		{[]string{"-diff", pc, file(t, "backup.vma")}, 1, "VMA"},
		{[]string{"-diff", "-describe", file(t, "backup.vma"), pc, pc}, 1, "no description"},
	} {
		if a := dumpFile(t, x.args...); a.status != x.status || !strings.Contains(a.stderr, x.say) {
			t.Errorf("%q: status %d, %s", x.args, a.status, a.stderr)
		}
	}
	stream, err := os.ReadFile(pc)
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if status := streamdump([]string{"-diff", "-", pc}, bytes.NewReader(stream), &out, &errs); status != 0 {
		t.Errorf("from a pipe: status %d, %s", status, errs.String())
	}
	out.Reset()
	if status := streamdump([]string{"-diff", "-", pc}, bytes.NewReader(nil), &out, &errs); status != 1 || !strings.Contains(errs.String(), "the input is empty") {
		t.Errorf("nothing: status %d, %s", status, errs.String())
	}
}

func TestTheFileForPagesHasNoNameWhereThatCanBe(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	t.Setenv("TMP", dir) // Windows
	f, remove, err := scratchFile()
	if err != nil {
		t.Fatal(err)
	}
	there := func() int {
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(names)
	}
	if n := there(); runtime.GOOS != "windows" && n != 0 {
		t.Errorf("%d files would be left behind by a signal", n)
	}
	if _, err := f.WriteAt([]byte("page"), 4096); err != nil {
		t.Error(err)
	}
	if remove(); there() != 0 {
		t.Error("it is left behind")
	}
}
