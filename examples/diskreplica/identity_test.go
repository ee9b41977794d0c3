package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
)

// refused wants a side to end by itself, with an error.
func (p *process) refused(why string, want error) {
	p.t.Helper()
	err := <-p.done
	p.done = nil
	if !errors.Is(err, want) {
		p.t.Errorf("%s: %v, want %v", why, err, want)
	}
}

func TestAnImageIsForOneSideAlone(t *testing.T) {
	dir := socket.Dir(t)
	img, sock := filepath.Join(dir, "b.img"), filepath.Join(dir, "b")
	s := start(t, "secondary", "-image", img, "-size", "4M", "-listen", sock, "-journal", filepath.Join(dir, "j"))
	s.expect("waiting for a primary")
	start(t, "secondary", "-image", img, "-listen", filepath.Join(dir, "c")).refused("a second secondary", replication.ErrLocked)
	start(t, "primary", "-image", img, "-secondary", sock).refused("a primary on its secondary's image", replication.ErrLocked)
	other := filepath.Join(dir, "d.img")
	start(t, "secondary", "-image", other, "-size", "4M", "-listen", filepath.Join(dir, "d"), "-journal", filepath.Join(dir, "j")).
		refused("another image with its journal", replication.ErrLocked)
}

func TestWhatASecondaryMayBeOverwrittenWith(t *testing.T) {
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	s := start(t, "secondary", "-image", path("b.img"), "-size", "4M", "-listen", path("b"))
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", path("a.img"), "-size", "4M", "-secondary", path("b"), "-listen", path("a"))
	p.expect("replication runs")
	write(t, guest(t, path("a"), "disk"), 0x22, 0)
	p.say("checkpoint")
	p.expect("checkpoint 1")
	p.quit()
	s.kill()

	// Another guest's image in the place of the first is refused by name, and
	// left as it is.
	s = start(t, "secondary", "-image", path("b.img"), "-listen", path("b"))
	s.expect("waiting for a primary")
	start(t, "primary", "-image", path("x.img"), "-size", "4M", "-secondary", path("b")).
		refused("another guest's primary", replication.ErrIdentity)
	p = start(t, "primary", "-image", path("a.img"), "-secondary", path("b"))
	p.expect("0 KiB copied")
	p.expect("replication runs")
	p.quit()

	// -overwrite says that it may be.
	x := start(t, "primary", "-image", path("x.img"), "-secondary", path("b"), "-overwrite")
	x.expect("replication runs")
	x.quit()
	start(t, "primary", "-image", path("a.img"), "-secondary", path("b")).refused("the first primary", replication.ErrIdentity)
}

// A primary that is not taken disturbs the one that is there in nothing, and neither does
// one that has not said who it is.
func TestAPrimaryThatIsRefusedDisturbsNobody(t *testing.T) {
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	s := start(t, "secondary", "-image", path("b.img"), "-size", "4M", "-listen", path("b"))
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", path("a.img"), "-size", "4M", "-secondary", path("b"), "-listen", path("a"))
	p.expect("replication runs")
	start(t, "primary", "-image", path("x.img"), "-size", "4M", "-secondary", path("b")).
		refused("another guest's primary", replication.ErrIdentity)
	c, err := dialControl(context.Background(), path("b"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	if _, err := c.ask(t.Context(), "checkpoint 7", "loaded"); err == nil {
		t.Error("a checkpoint of somebody who has not said hello was made")
	}
	names, err := c.ask(t.Context(), "hello", "export")
	if err != nil {
		t.Fatal(err)
	}
	name, _, _ := strings.Cut(names, " ")
	if _, err := guest(t, path("b"), name).WriteAt(make([]byte, 4096), 0); err == nil {
		t.Error("a primary whose identity is not known has written the disk")
	}
	for _, line := range []string{"checkpoint 7", "start"} {
		if _, err := c.ask(t.Context(), line, "error"); err != nil {
			t.Errorf("%s by a primary that has not been adopted: %v", line, err)
		}
	}
	write(t, guest(t, path("a"), "disk"), 0x22, 0)
	p.say("checkpoint")
	p.expect("checkpoint 1")
	want(t, "the secondary's guest", guest(t, path("b"), "guest"), 0x22, 0)
	s.say("status")
	s.expect("state running, epoch 1,")
}

// An image that has grown, on both hosts, is followed with the journal that it had, and brought back
// with it first.
func TestAnImageThatHasGrownHasTheSameJournal(t *testing.T) {
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	journal := []string{"-journal", path("j")}
	s := start(t, append([]string{"secondary", "-image", path("b.img"), "-size", "4M", "-listen", path("b")}, journal...)...)
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", path("a.img"), "-size", "4M", "-secondary", path("b"), "-listen", path("a"))
	p.expect("replication runs")
	write(t, guest(t, path("a"), "disk"), 0x22, 0)
	p.say("checkpoint")
	p.expect("checkpoint 1")
	write(t, guest(t, path("a"), "disk"), 0x44, 0) // what is in no checkpoint
	p.quit()
	s.kill()
	for _, name := range []string{"a.img", "b.img"} {
		if err := os.Truncate(path(name), 8<<20); err != nil {
			t.Fatal(err)
		}
	}
	s = start(t, append([]string{"secondary", "-image", path("b.img"), "-listen", path("b")}, journal...)...)
	s.expect("recovered the disk of epoch 1")
	s.expect("waiting for a primary")
	p = start(t, "primary", "-image", path("a.img"), "-secondary", path("b"), "-listen", path("a"))
	p.expect("replication runs")
	write(t, guest(t, path("a"), "disk"), 0x33, 6<<20)
	p.say("checkpoint")
	p.expect("checkpoint 1")
	want(t, "the secondary's guest", guest(t, path("b"), "guest"), 0x33, 6<<20)
	want(t, "the secondary's guest", guest(t, path("b"), "guest"), 0x44, 0)
}

// What "status" cannot know it does not say, and it says the rest.
func TestStatusOfADeviceSaysWhoKnows(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a.img")
	if err := os.WriteFile(name, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(context.Background(), []string{"status", os.DevNull, name}, nil, &out, false)
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), os.DevNull) {
		t.Errorf("the device: %v", err)
	}
	if want := name + ": of no known disk\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestReconnectNeedsNoOtherProcess(t *testing.T) {
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	s := start(t, "secondary", "-image", path("b.img"), "-size", "4M", "-listen", path("b"), "-journal", path("j"))
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", path("a.img"), "-size", "4M", "-secondary", path("b"), "-listen", path("a"))
	p.expect("replication runs")
	g := guest(t, path("a"), "disk")
	for i, end := range []func(){
		func() {}, // the connection is replaced
		func() { p.say("failover"); p.expect("on alone") },
		func() { s.say("stop"); s.expect("stop:") },
	} {
		write(t, g, byte(i+1), 8192)
		end()
		write(t, g, byte(i+1), 0)
		p.say("reconnect")
		p.expect("replication runs")
		p.say("verify")
		p.expect("0 KiB differed")
		p.say("checkpoint")
		p.expect("checkpoint ")
		want(t, "the secondary's guest", guest(t, path("b"), "guest"), byte(i+1), 0)
	}
}

func TestStatusOfImages(t *testing.T) {
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	s := start(t, "secondary", "-image", path("b.img"), "-size", "4M", "-listen", path("b"))
	s.expect("waiting for a primary")
	p := start(t, "primary", "-image", path("a.img"), "-size", "4M", "-secondary", path("b"))
	p.expect("replication runs")
	status := func(args ...string) string {
		t.Helper()
		var out bytes.Buffer
		if err := run(context.Background(), append([]string{"status"}, args...), nil, &out, false); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	lines := strings.Split(strings.TrimSpace(status(path("a.img"), path("b.img"))), "\n")
	if len(lines) != 2 || !strings.Contains(lines[0], "the guest's copy, clean, generation 1-") || !strings.Contains(lines[1], "a copy, inconsistent, generation 1-") {
		t.Errorf("while they are in use: %q", lines)
	}
	if use := fmt.Sprintf("in use by process %d", os.Getpid()); !strings.Contains(lines[0], use) || !strings.Contains(lines[0], "may lack") || !strings.Contains(lines[1], use) {
		t.Errorf("they are in use by this process: %q", lines)
	}
	p.say("checkpoint")
	p.expect("checkpoint 1")
	if got := status(path("a.img"), path("b.img")); strings.Contains(got, "epoch") {
		t.Errorf("no copy stands at a checkpoint, and it says: %s", got)
	}
	s.say("failover")
	s.expect("failover:")
	if got := status("-json", path("b.img")); !strings.Contains(got, `"generation":"2-`) || !strings.Contains(got, `"state":"clean"`) || !strings.Contains(got, `"writes":true`) {
		t.Errorf("after a failover: %s", got)
	}
	p.say("reconnect")
	p.expect("error:")
	p.kill()
	s.quit()

	// The side that was lost does not start again over the one that took over.
	s = start(t, "secondary", "-image", path("b.img"), "-listen", path("b"))
	s.expect("waiting for a primary")
	start(t, "primary", "-image", path("a.img"), "-secondary", path("b")).refused("the lost side", replication.ErrOutdated)
	if got := status(path("a.img")); !strings.Contains(got, "outdated") {
		t.Errorf("the lost side is %s", got)
	}
	s.quit()

	// A file that came back from elsewhere is not the file that it was.
	content, err := os.ReadFile(path("b.img"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(path("b.img"), path("b.old")), os.WriteFile(path("b.img"), content, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := run(context.Background(), []string{"status", path("b.img")}, nil, io.Discard, false); !errors.Is(err, replication.ErrIdentity) {
		t.Errorf("a replaced image: %v", err)
	}
	if err := run(context.Background(), []string{"bind", path("b.img")}, nil, io.Discard, false); err != nil {
		t.Error(err)
	}
	if got := status(path("b.img")); !strings.Contains(got, "generation 2-") {
		t.Errorf("bound again it is %s", got)
	}
}
