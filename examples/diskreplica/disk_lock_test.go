package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// stuck is a disk whose Sync does not answer before it is let go.
type stuck struct {
	data []byte
	hung bool
	free chan struct{}
}

func (d *stuck) Size() int64                              { return int64(len(d.data)) }
func (d *stuck) ReadAt(p []byte, off int64) (int, error)  { return copy(p, d.data[off:]), nil }
func (d *stuck) WriteAt(p []byte, off int64) (int, error) { return copy(d.data[off:], p), nil }
func (d *stuck) Sync() error {
	if d.hung {
		<-d.free
	}
	return nil
}

func TestAFailoverBehindACheckpointThatIsStuckSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		d := &stuck{data: make([]byte, 1<<20), free: make(chan struct{})}
		disk, err := replication.NewSecondary(d, replication.SecondaryConfig{})
		if err != nil {
			t.Fatal(err)
		}
		if err := disk.Start(ctx); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		s := &secondary{printer: &printer{out: &out}, disk: disk, srv: nbd.NewServer(nbd.ServerConfig{})}
		s.events.SubscribeAll(s.event)
		says := func(what string) {
			t.Helper()
			synctest.Wait()
			if !strings.Contains(out.String(), what) {
				t.Errorf("it says %q, want %q", out.String(), what)
			}
			out.Reset()
		}
		v := &visit{s: s}
		s.present = v
		if v.disk, err = s.srv.Export(nbd.ExportConfig{Name: diskName, Disk: disk.Export()}); err != nil {
			t.Fatal(err)
		}

		if _, err := disk.Export().WriteAt([]byte{1}, 0); err != nil {
			t.Fatal(err)
		}
		d.hung = true
		s.ordered.Go(func() { s.answer(ctx, v, []string{"checkpoint", "1"}) })
		synctest.Wait() // it has the lock, and waits for the disk
		begin := time.Now()
		if err := s.command(ctx, "failover"); err != nil || time.Since(begin) != patience {
			t.Errorf("after %v: %v", time.Since(begin), err)
		}
		says("failover: the disk has not let it be carried out for 5s")
		if err := s.command(ctx, "status"); err != nil {
			t.Error(err)
		}
		says("state running, epoch 0")
		close(d.free)
		s.ordered.Wait()
		says("failover: the disk is that of checkpoint 1")
	})
}

// A command that ends in time is answered before the next one is read.
func TestACommandThatIsQuickIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &secondary{printer: &printer{out: new(bytes.Buffer)}}
		ended := false
		err := s.patiently(t.Context(), "stop", func() error { time.Sleep(patience / 2); ended = true; return nil })
		if err != nil || !ended {
			t.Errorf("ended %v, %v", ended, err)
		}
		s.ordered.Wait()
	})
}
