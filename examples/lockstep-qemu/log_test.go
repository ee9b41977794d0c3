package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/replication/nbd"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// replica protects the guest of a recorded stream, of a machine without devices, with
// whoever listens at a socket, until the test ends.
func replica(t *testing.T, sock string) {
	t.Helper()
	f, err := os.Open("../../colo/standby/testdata/none-initial.bin")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	g := standby.New(standby.Config{})
	t.Cleanup(func() { g.Close() })
	if err := g.Read(qemufile.NewReader(f)); err != nil {
		t.Fatal(err)
	}
	reg := new(vmstate.Registry)
	rep, saver, err := g.NewReplica(reg, ram.SaverConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { rep.Close() })
	var conn net.Conn
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if conn, err = net.Dial("unix", sock); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	p, err := colo.NewPrimary(conn, colo.PrimaryConfig{
		VM: rep, State: reg, RAM: saver, Machine: "none", Step: rep.Step, CheckpointDelay: 20 * time.Millisecond,
		Arbiter: colo.ArbiterFunc(func(context.Context, colo.Claim) error {
			return fmt.Errorf("%w: the guest is not run here", colo.ErrRefused)
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-ended })
}

// logged waits for a line of stderr that has all of these.
func (p *program) logged(all ...string) string {
	p.t.Helper()
	limit := time.After(time.Minute)
	for {
	lines:
		for line := range strings.Lines(p.errors()) {
			for _, part := range all {
				if !strings.Contains(line, part) {
					continue lines
				}
			}
			return line
		}
		select {
		case <-p.more:
		case <-p.done:
			p.t.Fatalf("it has ended with %d", p.status)
		case <-limit:
			p.t.Fatalf("nothing is logged with %q", all)
		}
	}
}

// A relay logs its own session and those of its secondaries, a standby its session and
// what happens to its disks, each from its level up and in the form of its output.
func TestSessionsAndDisksAreLoggedFromALevelUp(t *testing.T) {
	t.Parallel()
	dir := qemutest.Dir(t)
	web, db := filepath.Join(dir, "web"), filepath.Join(dir, "db1")
	s := start(t, "standby", "-json", "-log", "info", "-listen", "unix:"+dir+"/s", "-state", db, "-arbiter", "file:"+dir,
		"-nbd", "unix:"+dir+"/n", "-disk", "d0="+emptyDisk(t, dir, "disk"))
	s.object("listening", 0)
	disk, err := nbd.Dial(t.Context(), "unix", dir+"/n", nbd.ClientConfig{Export: "d0"})
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if c, err := nbd.Dial(t.Context(), "unix", dir+"/n", nbd.ClientConfig{Export: "another"}); err == nil {
		c.Close()
		t.Fatal("there is a disk that nobody has named")
	}
	r := start(t, "relay", "-log", "debug", "-listen", "unix:"+dir+"/r", "-state", web, "-to", "unix:"+dir+"/s")
	replica(t, dir+"/r")

	r.logged("level=DEBUG", "msg=CHECKPOINT_COMMIT", "guest=web", "side=secondary", "checkpoint=2")
	r.logged("level=DEBUG", "msg=CHECKPOINT_COMMIT", "guest=web", "side=primary", "checkpoint=2", "secondary=unix:"+dir+"/s")
	s.checkpoints(2)
	s.logged("WARN", "client") // the one of no disk
	r.cancel()
	<-r.done
	s.cancel()
	<-s.done
	sessions := 0
	for line := range strings.Lines(s.errors()) {
		var rec struct {
			Level, Msg, Guest, Side string
			Generation, Checkpoint  *uint64
		}
		if json.Unmarshal([]byte(line), &rec) != nil {
			continue // what is said in any case
		}
		if rec.Level == "DEBUG" || rec.Guest != "db1" {
			t.Errorf("%s", line)
		}
		if rec.Side != "" {
			sessions++
			if rec.Side != "secondary" || rec.Generation == nil || rec.Checkpoint == nil {
				t.Errorf("%s", line)
			}
		}
	}
	if sessions == 0 {
		t.Errorf("nothing of the session is logged:\n%s", s.errors())
	}
}

func TestNothingIsLoggedWithoutALevel(t *testing.T) {
	var out, err bytes.Buffer
	for _, c := range []struct {
		level string
		json  bool
		want  string // in the line of a warning; "": there is none
	}{
		{"", false, ""}, {"off", true, ""}, {"error", false, ""},
		{"warn", false, `level=WARN msg="a \"word\"" guest=db1`}, {"info", true, `"level":"WARN","msg":"a \"word\"","guest":"db1"`}, {"debug", false, "level=WARN"},
	} {
		out.Reset()
		err.Reset()
		o := standbyOptions{state: "x/db1/", json: c.json}
		if c.level != "" {
			if err := o.log.Set(c.level); err != nil || o.log.String() != c.level {
				t.Fatal(o.log.String(), err)
			}
		}
		if l := newStandby(o, terminal{out: &out, err: &err}).guestLog(); l != nil {
			l.Warn(`a "word"`)
		}
		if got := err.String(); (got != "") != (c.want != "") || !strings.Contains(got, c.want) || out.Len() > 0 {
			t.Errorf("-log %s: %q, %q", c.level, got, out.String())
		}
	}
}
