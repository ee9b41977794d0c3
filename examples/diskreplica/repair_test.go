package main

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

// A repair of more than the secondary has room for waits for checkpoints, which nobody orders.
func TestARepairMakesTheCheckpointsThatItWaitsFor(t *testing.T) {
	const size = 8 << 20
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	disk, err := replication.CreateFile(path("b.img"), size)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	s := startWith(t, func(ctx context.Context, commands io.Reader, out io.Writer) (err error) {
		s := newSecondary(&printer{out: out})
		s.disk, err = replication.NewSecondary(disk, replication.SecondaryConfig{HiddenBytes: size / 4, Events: &s.events, Blank: true})
		if err != nil {
			return err
		}
		return s.serve(ctx, path("b"), commands)
	})
	defer s.kill() // before the disk is closed
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", path("a.img"), "-size", "8M", "-secondary", path("b"))
	p.expect("replication runs")
	if _, err := disk.WriteAt(bytes.Repeat([]byte{0x77}, size), 0); err != nil {
		t.Fatal(err)
	}
	p.say("repair")
	p.expect("verified: 8192 KiB compared, 8192 KiB differed, 8192 KiB repaired")
	p.say("verify")
	p.expect("0 KiB differed")
	p.say("checkpoint")
	p.expect("checkpoint ")
}
