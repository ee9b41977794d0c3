package main

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/replication/nbd"
)

// A connection that has broken once is made again by QEMU with the next write, and
// what was written in between is not in the copy.
func TestACopyThatHasBrokenOnceIsNotProtectedWith(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, pri := qemutest.Dir(t), qemutest.Dir(t)
	sock := "unix:" + filepath.Join(pri, "second")
	v := qemutest.Start(t, pri, append(diskGuest(t, pri, "format=raw,file="+emptyDisk(t, pri, "disk")), "-qmp", sock+",server=on,wait=off")...)
	qemutest.AwaitSerial(t, pri, 10)
	s := start(t, "standby", "-json", "-listen", "unix:"+filepath.Join(dir, "s"), "-state", dir, "-nbd", "unix:"+filepath.Join(dir, "n"), "-disk", "d0="+emptyDisk(t, dir, "disk"))
	link := newCable(t, filepath.Join(dir, "cable"), strings.TrimPrefix(s.text("disks"), "unix:"))
	o := &protectOptions{
		to: s.text("listening"), nbd: "unix:" + filepath.Join(dir, "cable"), disks: []mirrored{{"d0", "d0"}},
		delay: 20 * time.Millisecond, timeout: time.Minute,
	}
	p := &printer{terminal: terminal{out: t.Output(), err: t.Output()}}
	ctx, cancel := context.WithTimeout(t.Context(), o.timeout)
	defer cancel()
	if err := o.mirror(ctx, v.Client, p); err != nil {
		t.Fatal(err)
	}
	link.cut()
	v.Await("BLOCK_JOB_ERROR")
	for link.connections() < 2 {
		if ctx.Err() != nil {
			t.Fatal("QEMU does not connect again")
		}
		time.Sleep(5 * time.Millisecond)
	}
	v.Protect(o.to, o.delay)
	err := o.await(ctx, v.Client, p)
	if err == nil || !strings.Contains(err.Error(), "the copy ended") {
		t.Fatalf("%v", err)
	}
	if err := o.undo(t.Context(), v.Client, "running", nil); err != nil {
		t.Fatal(err)
	}
	qemutest.AwaitSerial(t, pri, len(qemutest.Serial(pri))+3)
	s.cancel()
	<-s.done
}

// A connection that ends after the migration has begun is the last one.
func TestNobodyConnectsToADiskWhileTheGuestIsMigrated(t *testing.T) {
	t.Parallel()
	dir := qemutest.Dir(t)
	d, err := openDisks([]diskFlag{{"d0", emptyDisk(t, dir, "disk")}}, "unix:"+dir+"/n", nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	connect := func() (*nbd.Client, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return nbd.Dial(ctx, "unix", dir+"/n", nbd.ClientConfig{Export: "d0"})
	}
	left := func() {
		t.Helper()
		for end := time.Now().Add(time.Minute); d.list[0].export.Clients() > 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the client has not left")
			}
		}
	}
	primary, err := connect()
	if err != nil {
		t.Fatal(err)
	}
	// It has come to no disk when the migration begins.
	late, err := net.Dial("unix", dir+"/n")
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if _, err := io.ReadFull(late, make([]byte, 18)); err != nil { // the server's greeting
		t.Fatal(err)
	}
	d.group(watch(late))
	if _, err := io.Copy(io.Discard, late); err != nil { // or it waits for half a minute
		t.Fatal(err)
	}
	primary.Close()
	left()
	if again, err := connect(); err == nil {
		again.Close()
		t.Error("a second connection was let in")
	}
	if err := d.list[0].Start(t.Context()); err == nil || d.begun() {
		t.Errorf("the copy was taken: %v", err)
	}
	// Of that migration nothing has come; the disk is copied anew for the next one.
	d.letIn()
	primary, err = connect()
	if err != nil {
		t.Fatal(err)
	}
	defer primary.Close()
	d.group(watch(late))
	if err := d.list[0].Start(t.Context()); err != nil {
		t.Error(err)
	}
}

// Whoever connects and says nothing has come to no disk. The QEMU has, and is ended for none of them:
// not for room, and not when the migration begins, whether they came before it or after.
func TestConnectionsThatSayNothingCostNoDiskItsPrimary(t *testing.T) {
	t.Parallel()
	dir := qemutest.Dir(t)
	d, err := openDisks([]diskFlag{{"d0", emptyDisk(t, dir, "disk")}}, "unix:"+dir+"/n", nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	silent := func() net.Conn {
		t.Helper()
		conn := dial(t, dir+"/n")
		if _, err := io.ReadFull(conn, make([]byte, 18)); err != nil { // the server's greeting
			t.Fatal(err)
		}
		return conn
	}
	ended := func(conn net.Conn) {
		t.Helper()
		conn.SetReadDeadline(time.Now().Add(10 * time.Second)) // each has 30 s to negotiate
		if _, err := conn.Read(make([]byte, 1)); !hungUp(err) {
			t.Fatal(err)
		}
	}
	before := silent()
	primary, err := nbd.Dial(t.Context(), "unix", dir+"/n", nbd.ClientConfig{Export: "d0"})
	if err != nil {
		t.Fatal(err)
	}
	defer primary.Close()
	if err := primary.Sync(); err != nil {
		t.Fatal(err)
	}
	d.group(watch(before)) // a migration begins
	ended(before)
	if err := primary.Sync(); err != nil {
		t.Fatalf("the primary was ended for a stranger: %v", err)
	}
	d.letIn() // and comes to nothing
	var list []net.Conn
	for range maxLost + 3 {
		list = append(list, silent())
	}
	for _, conn := range list[:3] {
		ended(conn)
	}
	d.group(watch(before))
	if err := primary.Sync(); err != nil {
		t.Fatalf("the primary was ended for one of %d strangers: %v", len(list), err)
	}
	if err := d.list[0].Start(t.Context()); err != nil {
		t.Error(err)
	}
}
