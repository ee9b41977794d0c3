package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/replication"
)

func TestAnImageOfAnotherSizeSaysHowItGetsThat(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	f, err := replication.CreateFile(name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for _, size := range []string{"512K", "2M"} {
		err := run(context.Background(), []string{"secondary", "-image", name, "-size", size, "-listen", name + ".s"}, strings.NewReader(""), io.Discard, false)
		if err == nil || !strings.Contains(err.Error(), "leave it out, or give the images of both sides that length with truncate -s") {
			t.Errorf("-size %s of an image of 1 MiB: %v", size, err)
		}
	}
}

func TestDisksOfUnequalLengthSayWhatMakesThemEqual(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("%w: 1 and 2 bytes", replication.ErrSize), "1 and 2 bytes (end both sides, give the shorter image the length of the other with truncate -s"},
		{io.ErrUnexpectedEOF, io.ErrUnexpectedEOF.Error()},
	} {
		if err := unequal(c.err); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v", err)
		}
	}
	if err := unequal(nil); err != nil {
		t.Error(err)
	}
}

func TestWhatIsBrokenSaysHowItGoesOn(t *testing.T) {
	for mode, want := range map[event.Mode]string{
		event.ModePrimary:   "reconnect copies what it has missed",
		event.ModeSecondary: "until the primary reconnects, or failover is ordered",
	} {
		var out bytes.Buffer
		(&printer{out: &out}).event(event.Record{Event: event.DiskBroken{Mode: mode, Operation: "write", Offset: 512, Length: 1024, Error: "no space left on device"}})
		if got := out.String(); !strings.Contains(got, "broken: write of 1024 bytes at 512: no space left on device\n") || !strings.Contains(got, want) {
			t.Errorf("%v: %s", mode, got)
		}
	}
}
