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

// startSecondary starts a secondary over a blank disk.
func startSecondary(t *testing.T, addr string, disk replication.Disk, cfg replication.SecondaryConfig) *process {
	p := startWith(t, func(ctx context.Context, commands io.Reader, out io.Writer) (err error) {
		s := newSecondary(&printer{out: out})
		cfg.Events, cfg.Blank = &s.events, true
		if s.disk, err = replication.NewSecondary(disk, cfg); err != nil {
			return err
		}
		return s.serve(ctx, addr, commands)
	})
	p.expect("waiting for a primary")
	return p
}

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
	s := startSecondary(t, path("b"), disk, replication.SecondaryConfig{HiddenBytes: size / 4})
	defer s.kill() // before the disk is closed
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
