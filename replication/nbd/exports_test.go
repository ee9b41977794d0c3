package nbd

import (
	"context"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestOldGenerationIsRefused(t *testing.T) {
	ctx := context.Background()
	_, exps, path := serve(t, ServerConfig{}, ExportConfig{Name: "d", Generation: 7, Disk: newRAM(4096)})
	for name, want := range map[string]error{"d@6": ErrPolicy, "d": ErrPolicy, "e": ErrUnknownExport, "d@07": ErrUnknownExport} {
		_, err := Dial(ctx, "unix", path, ClientConfig{Export: name})
		wantErr(t, name, err, want)
	}
	c := dial(t, path, ClientConfig{Export: exps[0].WireName()})
	_, err := Dial(ctx, "unix", path, ClientConfig{Export: "d@7"})
	wantErr(t, "a second client", err, ErrPolicy)
	must(t, c.Close())
	for exps[0].Clients() > 0 {
		time.Sleep(time.Millisecond)
	}
	dial(t, path, ClientConfig{Export: "d@7"})
}

func TestAnExportCountsTheRequestsOfAllItsClients(t *testing.T) {
	_, exps, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(8192), MaxClients: 2})
	for i := range uint64(2) {
		c := dial(t, path, ClientConfig{})
		if _, err := c.ReadAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
		if n := exps[0].Requests(); n != i+1 {
			t.Errorf("after %d requests: %d", i+1, n)
		}
	}
}

func TestGatedExportIsDrainedAndRefusesChanges(t *testing.T) {
	ctx := context.Background()
	disk := newRAM(8192)
	entered, release := make(chan struct{}), make(chan struct{})
	disk.hook = func(op string, _ int64) error {
		if op == "write" {
			entered <- struct{}{}
			<-release
		}
		return nil
	}
	_, exps, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	e := exps[0]
	c := dial(t, path, ClientConfig{})
	wrote := make(chan error)
	go func() { _, err := c.WriteAt([]byte{1}, 0); wrote <- err }()
	<-entered
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	wantErr(t, "a write is under way", e.Gate(short), context.DeadlineExceeded)
	gated := make(chan error)
	go func() { gated <- e.Gate(ctx) }()
	_, err := c.WriteAt([]byte{1}, 1)
	wantErr(t, "a later write", err, syscall.ESHUTDOWN)
	wantErr(t, "later zeroes", c.WriteZeroes(0, 1), syscall.ESHUTDOWN)
	wantErr(t, "a later trim", c.Trim(0, 1), syscall.ESHUTDOWN)
	close(release)
	must(t, <-gated)
	must(t, <-wrote)
	must(t, c.Sync())
	_, err = c.ReadAt(make([]byte, 1), 0)
	must(t, err)
	disk.hook = nil
	e.Open()
	_, err = c.WriteAt([]byte{1}, 1)
	must(t, err)
	must(t, e.Close(ctx))
	_, err = c.ReadAt(make([]byte, 1), 0)
	if err == nil {
		t.Error("a closed export is read")
	}
	_, err = Dial(ctx, "unix", path, ClientConfig{})
	wantErr(t, "a closed export", err, ErrUnknownExport)
}

func TestGateWaitsForAllChangesThatAreUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := newRAM(8192)
		release := make(chan struct{})
		disk.hook = func(string, int64) error { <-release; return nil }
		srv := NewServer(ServerConfig{})
		e, err := srv.Export(ExportConfig{Disk: disk})
		must(t, err)
		a, b := net.Pipe()
		var wg, writes sync.WaitGroup
		defer wg.Wait()
		wg.Go(func() { srv.ServeConn(context.Background(), b) })
		c, err := NewClient(context.Background(), a, ClientConfig{Timeout: time.Hour})
		must(t, err)
		defer c.Close()
		for i := range int64(2) {
			writes.Go(func() {
				if _, err := c.WriteAt([]byte{1}, i*4096); err != nil {
					t.Error(err)
				}
			})
		}
		gated := make(chan error, 1)
		synctest.Wait()
		wg.Go(func() { gated <- e.Gate(context.Background()) })
		synctest.Wait()
		release <- struct{}{}
		synctest.Wait()
		if len(gated) != 0 {
			t.Error("the gate is shut while a write is under way")
		}
		release <- struct{}{}
		must(t, <-gated)
		writes.Wait()
	})
}

func TestReadOnlyExport(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(4096), ReadOnly: true})
	c := dial(t, path, ClientConfig{})
	_, err := c.WriteAt([]byte{1}, 0)
	wantErr(t, "write", err, ErrReadOnly)
	c.info.ReadOnly = false // a client that does not care
	_, err = c.WriteAt([]byte{1}, 0)
	wantErr(t, "write", err, syscall.EPERM)
}

func TestListNamesTheExports(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Name: "a", Disk: newRAM(512)}, ExportConfig{Name: "b", Generation: 2, Disk: newRAM(512)})
	conn, err := net.Dial("unix", path)
	must(t, err)
	names, err := List(context.Background(), conn, ClientConfig{})
	must(t, err)
	slices.Sort(names)
	if !slices.Equal(names, []string{"a", "b@2"}) {
		t.Errorf("names %q", names)
	}
}

func TestNamesWithGenerations(t *testing.T) {
	for _, tc := range []struct {
		wire, name string
		gen        uint64
	}{{"d", "d", 0}, {"d@5", "d", 5}, {"d@0", "d@0", 0}, {"d@05", "d@05", 0}, {"@1", "", 1}, {"a@b", "a@b", 0}, {"a@1@2", "a@1", 2}} {
		name, gen := SplitName(tc.wire)
		if name != tc.name || gen != tc.gen || Name(name, gen) != tc.wire {
			t.Errorf("%q splits into %q and %d", tc.wire, name, gen)
		}
	}
}
