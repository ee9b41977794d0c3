package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
)

// given returns a process that is given a guest and takes nothing.
func given(t *testing.T) *process {
	t.Helper()
	q := &process{cmd: exec.Command(require.Program(t, require.Processes, "sleep"), "1000"), qmp: "unix:" + socket.Dir(t) + "/qmp",
		done: make(chan struct{}), sent: make(chan error, 1), slow: brief}
	if err := q.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { q.err = q.cmd.Wait(); close(q.done) }()
	t.Cleanup(func() { q.cmd.Process.Kill(); <-q.done })
	return q
}

func TestAQEMUThatTakesNothingOfItsGuestIsNamed(t *testing.T) {
	for _, c := range []struct {
		all   bool
		words string
	}{{false, "has taken nothing of the guest for "}, {true, "has not said that it runs it"}} {
		q := given(t)
		q.taking.all.Store(c.all)
		var said printed
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			q.attend(ctx, (&printer{terminal: terminal{err: &said}}).warn, nil, nil)
		}()
		words := fmt.Sprintf("process %d %s", q.cmd.Process.Pid, c.words)
		if c.all {
			words = c.words
		}
		eventually(t, words, func() bool { return said.count(words) == 1 && said.count(fmt.Sprint(q.cmd.Process.Pid)) == 1 })
		cancel()
		<-ended
	}
}

// The guest runs nowhere for as long as the QEMU hangs. One that has all of it may be running it.
func TestAnotherQEMUTakesTheGuestOfOneThatHangs(t *testing.T) {
	for _, all := range []bool{false, true} {
		q := given(t)
		q.taking.all.Store(all)
		s := newStandby(standbyOptions{}, terminal{err: new(printed)})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := make(chan answer, 1)
		go func() {
			for s.standing().QEMU == "" { // who asks how it stands hears it
				time.Sleep(time.Millisecond)
			}
			s.orders <- order{Do: "promote", QEMU: []string{"true"}, answer: got}
			if all { // it still is waited for
				cancel()
			}
		}()
		_, err := s.attended(ctx, q)
		if a := <-got; (a.Error == "") == all {
			t.Errorf("with all of the guest %t: the order was answered %q", all, a.Error)
		}
		if err == nil || q.taking.replaced.Load() == all || s.qemu != nil == all {
			t.Errorf("with all of the guest %t: %v; the QEMU is %q", all, err, s.qemu)
		}
	}
}

// lostTo starts a standby that gives its guest to a command, and loses its primary.
func lostTo(t *testing.T, ctx context.Context, dir string, said *printed, qemu ...string) <-chan int {
	t.Helper()
	require.Program(t, require.Processes, qemu[0])
	s := newStandby(standbyOptions{listen: "unix:" + dir + "/in", state: dir, takeover: "always", qemu: qemu, slow: brief, peer: time.Minute, idle: time.Minute},
		terminal{out: said, err: said})
	ended := make(chan int, 1)
	go func() { ended <- s.main(ctx) }()
	eventually(t, "it does not wait", func() bool { return said.count("for a primary") > 0 })
	conn, err := net.Dial("unix", dir+"/in")
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"none-initial.bin", "none-checkpoint.bin"} {
		p, err := os.ReadFile("../../colo/standby/testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		conn.Write(append([]byte{0, 0, 0, 1}[:4*i], p...))
	}
	eventually(t, "it has not received it", func() bool { return said.count("received") > 0 })
	conn.Close()
	return ended
}

// A QEMU that hangs does not end by SIGTERM. It has the guest then, and whoever ends the standby has meant that.
func TestAStandbyWhoseQEMUHangsEndsAndLeavesNothingBehind(t *testing.T) {
	var said printed
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	monitor := newFakeQEMU(t, -1)
	dir := socket.Dir(t)
	// It is the QEMU's monitor that answers, and its process that hangs.
	hangs := fmt.Sprintf("cat <&3 >/dev/null; trap '' TERM; ln -s %s %s/qmp; while :; do sleep 0.01; done", strings.TrimPrefix(monitor.addr, "unix:"), dir)
	done := lostTo(t, ctx, dir, &said, "sh", "-c", hangs)
	eventually(t, "it is not brought back", func() bool { return said.count("back  ") > 0 })
	cancel()
	if status := <-done; status != exitInterrupted || said.count("is killed") != 1 {
		t.Errorf("status %d", status)
	}
}

// The guest has been protected again since, and its guardian takes a socket that is not there any more for a sign that it may have
// ended in good order: the second failover of a guest's life would not come.
func TestTheSocketOfAQEMUThatHasCrashedWithItsGuestStaysForItsGuardian(t *testing.T) {
	var said printed
	monitor := newFakeQEMU(t, -1)
	dir := socket.Dir(t)
	at := filepath.Join(dir, "qmp")
	crashes := fmt.Sprintf("cat <&3 >/dev/null; ln -s %s %s; while ! [ -e %s/now ]; do sleep 0.01; done; kill -9 $$", strings.TrimPrefix(monitor.addr, "unix:"), at, dir)
	done := lostTo(t, t.Context(), dir, &said, "sh", "-c", crashes)
	eventually(t, "it is not brought back", func() bool { return said.count("back  ") > 0 })
	if err := os.Remove(at); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if err := os.WriteFile(filepath.Join(dir, "now"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if status := <-done; status != exitGuest {
		t.Errorf("status %d", status)
	}
	if _, err := net.Dial("unix", at); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a guardian that connects is told %v", err)
	}
}

// A QEMU that is killed leaves the socket of its monitor.
func TestTheSocketOfADeadQEMUIsRemovedAndThatOfALivingOneIsNot(t *testing.T) {
	dir := socket.Dir(t)
	q := &process{qmp: "unix:" + filepath.Join(dir, "qmp")}
	l, err := net.Listen("unix", dir+"/qmp")
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	q.tidy()
	if _, err := os.Stat(dir + "/qmp"); err != nil {
		t.Error(err)
	}
	l.Close()
	q.tidy()
	if _, err := os.Stat(dir + "/qmp"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
}

func TestAQEMUThatWouldLeaveItsStandbyIsRefused(t *testing.T) {
	p := start(t, "standby", "-listen", "127.0.0.1:0", "-state", t.TempDir(), "--", "true", "-daemonize")
	p.ends(exitUsage)
	if !strings.Contains(p.errors(), "-daemonize") {
		t.Error(p.errors())
	}
}

// The relay's guest runs nowhere until one of the secondaries goes on.
func TestASecondaryThatHangsKeepsNoOtherFromGoingOn(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Parallel()
	var said printed
	p := &printer{terminal: terminal{out: &said, err: &said}}
	r := &relayRun{standbyRun: &standbyRun{p: p, guest: standby.New(standby.Config{})}}
	r.peer, r.slow, r.lost = time.Hour, brief, time.Now()
	const good = 1
	for i := range 4 {
		hangs := 0
		if i == good {
			hangs = -1
		}
		r.secondaries = append(r.secondaries, &follower{r: r, addr: fmt.Sprint("secondary ", i), monitor: newFakeQEMU(t, hangs).addr, synced: true})
	}
	done := make(chan error, 1)
	go func() {
		there, err := r.promote(t.Context())
		if err == nil && (!there || r.promoted != r.secondaries[good]) {
			err = errors.New("another one was promoted, or none")
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for a secondary that hangs")
	}
	r.end() // and does not wait for the others as long as a session would
}
