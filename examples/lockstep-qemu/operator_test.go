package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/signals"
)

func TestAnOperatorsOrderBringsTheGuestBack(t *testing.T) {
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	s := start(t, append([]string{"standby", "-json", "-listen", "127.0.0.1:0", "-state", dir}, same(t, back, "microvm")...)...)
	p, _ := primary(t, "microvm")
	p.Protect(s.text("listening"), 20*time.Millisecond)
	s.checkpoints(5)
	stop(p) // the operator has seen to it
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(signals.User1); err != nil {
		t.Fatal(err)
	}
	s.object("back", 0)
	qemutest.AwaitSerial(t, back, 10)
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
	if !strings.Contains(s.output(), `"reason":"request"`) {
		t.Error("COLO_EXIT does not say that it was ordered")
	}
}

// An order that is carried out for long is answered when the process ends.
func TestAnOrderUnderWayDoesNotKeepAProcessFromEnding(t *testing.T) {
	dir := qemutest.Dir(t)
	l, _, err := listen(socketIn(dir, "standby"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	orders, ended := make(chan order), make(chan struct{})
	go func() { takeOrders(ctx, l, orders, nil); close(ended) }()
	answered := make(chan error, 1)
	go func() {
		_, err := tell(t.Context(), socketIn(dir, "standby"), order{Do: "rehearse"})
		answered <- err
	}()
	<-orders // and it is never answered
	cancel()
	limit := time.After(time.Minute)
	select {
	case err := <-answered:
		if err == nil || err.Error() != "it is ending" {
			t.Errorf("%v", err)
		}
	case <-limit:
		t.Fatal("it is not answered")
	}
	select {
	case <-ended:
	case <-limit:
		t.Fatal("it is still served")
	}
}

func TestPeopleAreToldWhatHappens(t *testing.T) {
	t.Parallel()
	needsQEMU(t)
	dir, back := qemutest.Dir(t), qemutest.Dir(t)
	s := start(t, append([]string{"standby", "-listen", "unix:" + dir + "/s", "-state", dir}, same(t, back, "microvm")...)...)
	p, _ := primary(t, "microvm")
	p.Protect("unix:"+dir+"/s", 20*time.Millisecond)
	// The progress line comes with the first checkpoint, and then now and then.
	for end := time.Now().Add(time.Minute); !strings.Contains(s.output(), "checkpoint  ") && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	p.Kill()
	for end := time.Now().Add(time.Minute); !strings.Contains(s.output(), "back  ") && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	qemutest.Monitor(t, filepath.Join(dir, "qmp")).Do(t.Context(), "quit", nil, nil)
	s.ends(exitOK)
	var words []string
	for _, line := range strings.Split(strings.TrimSpace(s.output()), "\n") {
		words = append(words, strings.Fields(line)[0])
	}
	words = slices.Compact(words)
	if got, want := strings.Join(words, " "), "waiting connected received checkpoint lost bringing back"; got != want {
		t.Errorf("it said %q, want %q:\n%s", got, want, s.output())
	}
}

// nonsense is a primary whose second checkpoint cannot be understood, and which
// stays connected.
func nonsense(t *testing.T, uri string, broken []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(uri, "tcp:"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	for _, name := range []string{"none-initial.bin", "none-checkpoint.bin"} {
		p, err := os.ReadFile("../../colo/standby/testdata/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if name == "none-checkpoint.bin" {
			p = slices.Concat([]byte{0, 0, 0, 1}, p)
		}
		if _, err := conn.Write(p); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := conn.Write(broken); err != nil {
		t.Fatal(err)
	}
}

func TestAPrimaryThatTalksNonsenseIsNotTakenForDead(t *testing.T) {
	request, send, size := []byte{0, 0, 0, 1}, []byte{0, 0, 0, 3, 0}, []byte{0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0}
	for name, broken := range map[string][]byte{
		"device state that is cut off": slices.Concat(request, send, size, []byte{5, 4, 0, 0, 0, 0}),
		"a package that is cut off":    slices.Concat(request, send[:4], []byte{8, 0, 7, 0, 4, 0, 0, 0, 2, 4, 0}),
		"an unknown message":           {0, 0, 0, 99},
	} {
		t.Run(name, func(t *testing.T) {
			// Whatever is started here would be a second guest.
			s := start(t, "standby", "-json", "-listen", "127.0.0.1:0", "-state", t.TempDir(), "--", "false")
			nonsense(t, s.text("listening"), broken)
			s.ends(exitUnfenced)
			if r := s.summary(); r.Epoch != 1 || r.State == "" {
				t.Errorf("%+v", r)
			}
		})
	}
}
