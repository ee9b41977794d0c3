package replication

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// An operator who starts a program beside the files of another version of it is told that,
// and not that they are broken.
func TestFilesOfAnotherVersionSayWhichTheyAre(t *testing.T) {
	metadata := func(p []byte) error {
		_, err := OpenMetadata(memoryOf(t, p, metadataHead))
		return err
	}
	journal := func(p []byte) error {
		_, err := OpenJournal(memoryOf(t, p, minJournal), memoryOf(t, nil, minJournal))
		return err
	}
	identity := func(p []byte) error {
		_, err := decodeIdentity(append(p, make([]byte, SectorSize)...))
		return err
	}
	for _, c := range []struct {
		begins, want string
		open         func([]byte) error
	}{
		{"lockstep disk 1\n", "version 1", metadata},
		{"lockstep disk 9999\n", "version 9999", metadata},
		{"lockstep disk 2\n", "", metadata}, // with a checksum that is wrong
		{"lockstep disk x\n", "", metadata},
		{"lockstep disk 1", "", metadata},
		{"lockstep journal 4\n", "version 4", journal},
		{"lockstep disk 1\n", "", journal},
		{"lockstep copy 2\n", "version 2", identity},
		{"lockstep copy \n", "", identity},
	} {
		err := c.open([]byte(c.begins))
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v, want ErrCorrupt", c.begins, err)
			continue
		}
		if c.want != "" != strings.Contains(err.Error(), "another version of this library") || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want it to speak of %q", c.begins, err, c.want)
		}
	}
}

func memoryOf(t *testing.T, begins []byte, size int64) Disk {
	t.Helper()
	name := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(name, begins, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
