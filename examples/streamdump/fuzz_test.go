package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzStreamdump gives anything to the program.
func FuzzStreamdump(f *testing.F) {
	for _, name := range []string{"precopy_none_1M.bin", "postcopy_none_8M_stream.bin", "none.mig.gz"} {
		f.Add(vector(f, name))
	}
	f.Add(colo(f))
	for _, name := range []string{"null-first.mig", "arduino-uno.mig", "libvirt.save", "none-padding.mig", "none.mig.gzipped"} {
		p, err := os.ReadFile(file(f, name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(ends)
}

// ends gives the program a stream, in each of its ways: whatever that is, it ends with a status, and
// what it prints as JSON is JSON.
func ends(t *testing.T, p []byte) {
	t.Helper()
	for _, args := range [][]string{{"-json", "-fields", "-verify"}, {"-fields", "-colo"}, {"-json", "-return-path"}} {
		status, out, stderr := run(p, args...)
		if status != 0 && status != 1 || status == 1 && stderr == "" {
			t.Fatalf("%q: status %d, %q", args, status, stderr)
		}
		if strings.ContainsAny(out, "\x1b\x07") {
			t.Fatalf("%q: it moves the cursor: %q", args, out)
		}
		if args[0] != "-json" {
			continue
		}
		for _, l := range bytes.Split(bytes.TrimSpace([]byte(out)), []byte("\n")) {
			if !json.Valid(l) {
				t.Fatalf("%q: no JSON: %q", args, l)
			}
		}
	}
	name := filepath.Join(t.TempDir(), "a")
	if err := os.WriteFile(name, p, 0o666); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	if status := streamdump([]string{"-diff", "-json", name, name}, nil, &out, &errs); status == 1 && errs.Len() == 0 || status == 2 {
		t.Fatalf("a stream differs from itself: %s", out.Bytes())
	}
}
