package main

import (
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// A migration that is ended when it has just come to COLO, or before that, leaves a guest
// that runs.
func TestAMigrationThatIsCutLeavesItsGuestRunningWhereverItIs(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	for _, c := range []struct {
		name, status string
		bandwidth    int // bytes/s
	}{
		{"while memory is sent", "active", 4096},
		{"at the turn to COLO", "colo", 1 << 30}, // its secondary is never ready
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := qemutest.Dir(t)
			l, err := net.Listen("unix", filepath.Join(dir, "in"))
			if err != nil {
				t.Fatal(err)
			}
			drained := make(chan struct{})
			go func() {
				defer close(drained)
				if conn, err := l.Accept(); err == nil {
					io.Copy(io.Discard, conn)
					conn.Close()
				}
			}()
			t.Cleanup(func() { l.Close(); <-drained })
			v := qemutest.Start(t, dir, qemutest.GuestArgs(t, dir, "pc", 16)...)
			t.Cleanup(v.Kill) // ends the connection
			qemutest.AwaitSerial(t, dir, 2)
			v.Must("migrate-set-parameters", qemutest.Args{"max-bandwidth": c.bandwidth})
			v.Protect("unix:"+filepath.Join(dir, "in"), time.Hour)
			status := func() (now progress) {
				if err := v.Client.Do(t.Context(), "query-migrate", nil, &now); err != nil {
					t.Fatal(err)
				}
				return now
			}
			for end := time.Now().Add(time.Minute); status().Status != c.status; time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the migration is %q", status().Status)
				}
			}
			if c.status == "colo" && v.RunState() == "running" {
				t.Fatal("the guest runs")
			}
			if err := (&protectOptions{}).cutMigration(t.Context(), v.Client); err != nil {
				t.Error(err)
			}
			v.AwaitRunState("running")
			qemutest.AwaitSerial(t, dir, len(qemutest.Serial(dir))+3)
			if now := status().Status; now == "active" || now == "colo" {
				t.Errorf("the migration is %q", now)
			}
		})
	}
}
