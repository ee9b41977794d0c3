package main

import (
	"net"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/internal/socket"
)

// A process that has ended answers nothing that it owes an answer to, which is no sign that it hangs.
func TestAQEMUThatHasEndedIsNotTakenForOneThatHangs(t *testing.T) {
	t.Parallel()
	at := filepath.Join(socket.Dir(t), "qmp")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as by SIGKILL
	q := &fakeQEMU{hangsAt: 2, hung: make(chan struct{})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		conn, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		go func() {
			<-q.hung
			l.Close()
			conn.Close()
		}()
		q.serve(conn)
	}()
	g := alone(nil)
	g.qmp = "unix:" + at
	if err := g.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	watched := make(chan struct{})
	go func() { defer close(watched); g.watch(t.Context()) }()
	for n := (news{}); n.in != standby.Died; n = <-g.told {
	}
	<-watched
	<-served
	if command, _ := g.monitor().Unanswered(); command != "query-status" {
		t.Errorf("the QEMU owes an answer to %q", command)
	}
	if g.owing() != nil {
		t.Error("it is waited for")
	}
}
