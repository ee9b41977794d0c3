package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

func TestTheExitStatusSaysWhatTheLastVerifyFound(t *testing.T) {
	const size = 1 << 20
	for _, c := range []struct {
		commands string
		json     bool
		says     []string
		status   int
	}{
		{"verify", false, []string{"64 KiB differed, 0 KiB repaired", "different: 65536 bytes at 65536"}, 3},
		{"verify", true, []string{`{"return":{"different":[[65536,65536]]}}`}, 3},
		{"repair", false, []string{"64 KiB differed, 64 KiB repaired"}, 0},
		{"verify repair", false, []string{"64 KiB differed, 64 KiB repaired"}, 0},
		{"verify repair verify", true, []string{`{"return":{"different":[]}}`}, 0},
		{"failover verify", false, []string{"error: no secondary"}, 1},
		{"", false, nil, 0},
	} {
		if testing.Short() && c.commands != "verify repair verify" {
			continue
		}
		t.Run(fmt.Sprintf("%s, json %v", c.commands, c.json), func(t *testing.T) {
			dir := socket.Dir(t)
			path := func(name string) string { return filepath.Join(dir, name) }
			disk, err := replication.CreateFile(path("b.img"), size)
			if err != nil {
				t.Fatal(err)
			}
			defer disk.Close()
			s := startSecondary(t, path("b"), disk, replication.SecondaryConfig{})
			defer s.kill() // before the disk is closed
			args := []string{"primary", "-image", path("a.img"), "-size", "1M", "-secondary", path("b")}
			if c.json {
				args = append(args, "-json")
			}
			p := start(t, args...)
			s.expect("replication runs")
			if _, err := disk.WriteAt(bytes.Repeat([]byte{0x77}, 512), 65536); err != nil {
				t.Fatal(err)
			}
			for _, line := range bytes.Fields([]byte(c.commands)) {
				p.say(string(line))
			}
			for _, text := range c.says {
				p.expect(text)
			}
			p.say("quit")
			err = <-p.done
			p.done = nil
			if got := statusOf(err, t.Output()); got != c.status {
				t.Errorf("%v is status %d, want %d", err, got, c.status)
			}
		})
	}
}

func TestWhatIsUndecidedHasAnExitStatusOfItsOwn(t *testing.T) {
	undecided := &replication.UndecidedError{Chunks: replication.NewBitmap(1 << 20)}
	undecided.Chunks.Set(0, 1)
	for _, c := range []struct {
		err    error
		status int
	}{{undecided, 4}, {errors.Join(errDiffer, undecided), 3}, {errDiffer, 3}, {io.ErrUnexpectedEOF, 1}, {context.Canceled, 0}} {
		if got := statusOf(c.err, t.Output()); got != c.status {
			t.Errorf("%v is status %d, want %d", c.err, got, c.status)
		}
	}
}
