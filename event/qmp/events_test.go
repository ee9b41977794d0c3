package qmp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// attach serves one client over a pipe, which ends with the test's context.
func attach(t *testing.T, s *qmp.Server) (conn net.Conn, r *bufio.Reader, end func()) {
	t.Helper()
	near, far := net.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); s.ServeConn(ctx, far) }()
	return near, bufio.NewReader(near), func() { cancel(); near.Close(); <-done }
}

func say(t *testing.T, conn net.Conn, r *bufio.Reader, command string) (answer string) {
	t.Helper()
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		t.Fatal(err)
	}
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(line, "\r\n")
}

func TestEventsArePrintedAsQEMUPrintsThem(t *testing.T) {
	text, err := os.ReadFile("../testdata/qemu-7.2-said.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(text), []byte("\n"))
	synctest.Test(t, func(t *testing.T) {
		h, s := newHost()
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		h.bus.Publish(event.Powerdown{}) // nobody has negotiated yet
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		for _, want := range lines {
			rec, err := event.Decode(want)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			h.bus.Now = func() time.Time { return rec.Time }
			h.bus.Publish(rec.Event)
			got, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want)+"\r\n" {
				t.Errorf("got  %swant %s", got, want)
			}
		}
	})
}

func TestEventsAreLimitedAsQEMULimitsThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, s := newHost()
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		start := time.Now()
		var got []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 4 {
				line, _ := r.ReadString('\n')
				rec, err := event.Decode([]byte(line))
				if err != nil {
					t.Error(err)
					return
				}
				got = append(got, fmt.Sprintf("%v: %d", time.Since(start), rec.Event.(event.RTCChange).Offset))
			}
		}()
		for i := range 13 {
			h.bus.Publish(event.RTCChange{Offset: int64(i)})
			time.Sleep(190 * time.Millisecond)
		}
		<-done
		if want := "[0s: 0 1s: 5 2s: 10 3s: 12]"; fmt.Sprint(got) != want {
			t.Errorf("got %v, want %s", got, want)
		}
	})
}

func TestAClientThatDoesNotReadStallsNobodyAndIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, s := newHost()
		s.MaxEvents = 10
		var conns []net.Conn
		var readers []*bufio.Reader
		for range 2 {
			conn, r, end := attach(t, s)
			defer end()
			r.ReadString('\n')
			say(t, conn, r, `{"execute":"qmp_capabilities"}`)
			conns, readers = append(conns, conn), append(readers, r)
		}
		seen := make(chan int)
		go func() {
			n := 0
			for line, err := readers[1].ReadString('\n'); err == nil && !strings.Contains(line, "SUSPEND"); line, err = readers[1].ReadString('\n') {
				n++
			}
			seen <- n
		}()
		before := time.Now()
		for range 100 {
			h.bus.Publish(event.Reset{Guest: true, Reason: event.ShutdownGuestReset})
			synctest.Wait()
		}
		h.bus.Publish(event.Suspend{})
		if n := <-seen; n != 100 {
			t.Errorf("the client that reads has seen %d of 100", n)
		}
		if d := time.Since(before); d != 0 {
			t.Errorf("the guest has waited for %v", d)
		}
		if n := s.Dropped(); n < 85 || n > 95 {
			t.Errorf("%d events were dropped for the other one, of 101 with 10 kept", n)
		}
		time.Sleep(qmp.DefaultStall + time.Second)
		synctest.Wait()
		if _, err := conns[0].Write([]byte("{}")); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the one that does not read is still there: %v", err)
		}
		if got := say(t, conns[1], readers[1], `{"execute":"query-name"}`); got != `{"return": {}}` {
			t.Errorf("the other one hears %s", got)
		}
	})
}

func TestAnswersThatAreNotReadStopTheCommandsAndNoneIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newHost()
		s.MaxBacklog, s.Stall = 1000, time.Hour
		ran := 0
		qmp.Register(s.Commands, "big", func(context.Context, qmp.None) (map[string]string, error) {
			ran++
			return map[string]string{"x": strings.Repeat("x", 100)}, nil
		})
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		go func() {
			for i := range 200 {
				fmt.Fprintf(conn, `{"execute":"big","id":%d}`, i)
			}
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if ran > 30 {
			t.Errorf("%d commands were executed though nobody reads", ran)
		}
		for i := range 200 {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			var a struct{ ID int }
			if json.Unmarshal([]byte(line), &a); a.ID != i {
				t.Fatalf("answer %d is that of %d", i, a.ID)
			}
		}
	})
}
