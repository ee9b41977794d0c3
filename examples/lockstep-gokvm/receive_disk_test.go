package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/replication"
)

// receives runs receive with a disk of this host until it has ended, as it does when it listens.
func receives(t *testing.T, disk string) (said string, err error) {
	t.Helper()
	o, err := parseOptions([]string{modeReceive, "-disk", disk, "-json", "-insecure", "-listen", "127.0.0.1:0"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	o.hw = thisHost
	o.hw.probe = func() error { return nil }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out bytes.Buffer
	std := stdio{strings.NewReader(""), writes(func(b []byte) {
		if out.Write(b); bytes.Contains(b, []byte("listening")) {
			cancel()
		}
	}), &out}
	c := newConsole(std, o.json, nil)
	err = runRoaming(ctx, o, c, newPrinter(o, std, c))
	c.close()
	return out.String(), err
}

// writes is a writer that a function takes the bytes of.
type writes func([]byte)

func (w writes) Write(b []byte) (int, error) { w(b); return len(b), nil }

// Whoever mistypes -disk hears of it when the program starts, and not when a guest has come.
func TestAHostWithoutTheDiskDoesNotWaitForAGuest(t *testing.T) {
	for name, c := range map[string]struct {
		disk string
		want error
	}{
		"no such file": {filepath.Join(t.TempDir(), "none"), fs.ErrNotExist},
		"a directory":  {t.TempDir(), nil},
	} {
		said, err := receives(t, c.disk)
		if err == nil || !strings.Contains(err.Error(), "-disk: ") || !strings.Contains(err.Error(), c.disk) || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: it ends with %v", name, err)
		}
		if strings.Contains(said, "listening") {
			t.Errorf("%s: it waits for a guest: %s", name, said)
		}
	}
}

func TestAHostWhoseDiskTheGuestHasWaitsForIt(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := replication.OpenFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if said, err := receives(t, disk); err != nil || !strings.Contains(said, "listening") {
		t.Errorf("it says %s, and ends with %v", said, err)
	}
}
