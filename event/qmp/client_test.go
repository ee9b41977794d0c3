package qmp_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/socket"
)

func TestAddressesAreWrittenAsForQEMU(t *testing.T) {
	for in, want := range map[string]string{
		"unix:/a/b": "unix /a/b", "tcp:h:1": "tcp h:1", "h:1": "tcp h:1", "/a:1": "unix /a:1", "sock": "unix sock",
		"unix:/a,server=on,wait=off": "unix /a", "[::1]:5": "tcp [::1]:5",
	} {
		if n, a := qmp.Split(in); n+" "+a != want {
			t.Errorf("%q: %s %s, want %s", in, n, a, want)
		}
	}
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}`

// monitor answers commands as fn says, one line of command at a time.
func monitor(t *testing.T, hello string, fn func(line string, n int) string) string {
	t.Helper()
	sock := filepath.Join(socket.Dir(t), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprint(c, hello, "\r\n")
		s := bufio.NewScanner(c)
		for n := 1; s.Scan(); n++ {
			fmt.Fprint(c, fn(s.Text(), n))
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "unix:" + sock
}

func TestCommandsAndEventsAreToldApart(t *testing.T) {
	addr := monitor(t, greeting, func(line string, n int) string {
		switch {
		case strings.Contains(line, "query-status"):
			return `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}` + "\r\n" +
				fmt.Sprintf(`{"return": {"status": "paused"}, "id": %d}`, n) + "\r\n" +
				`{"timestamp": {"seconds": 1, "microseconds": 3}, "event": "RESUME"}` + "\r\n"
		case strings.Contains(line, "cont"):
			return fmt.Sprintf(`{"id": %d, "error": {"class": "GenericError", "desc": "not now"}}`, n) + "\r\n"
		}
		return fmt.Sprintf(`{"return": {}, "id": %d}`, n) + "\r\n"
	})
	c, err := qmp.Dial(t.Context(), addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Version != "7.2.22" {
		t.Errorf("version %q", c.Version)
	}
	var st struct{ Status string }
	if err := c.Do(t.Context(), "query-status", nil, &st); err != nil || st.Status != "paused" {
		t.Errorf("%+v, %v", st, err)
	}
	var refused *qmp.Error
	if err := c.Do(t.Context(), "cont", map[string]int{"x": 1}, nil); !errors.As(err, &refused) || refused.Desc != "not now" || err.Error() != "cont: not now" {
		t.Errorf("%v", err)
	}
	named := func(name string) func(event.Record) bool {
		return func(r event.Record) bool { return r.Event.Name() == name }
	}
	for range 2 { // it takes nothing away
		if !c.Pending(named("STOP")) || !c.Pending(named("RESUME")) || c.Pending(named("SHUTDOWN")) {
			t.Error("what has come is not what is pending")
		}
	}
	for _, name := range []string{"STOP", "RESUME"} {
		if e, err := c.Wait(t.Context(), func(r event.Record) bool { return true }); err != nil || e.Event.Name() != name {
			t.Errorf("%v, %v, want %s", e, err, name)
		}
	}
	// One that does not answer is given up, and can be asked again.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Wait(ctx, func(event.Record) bool { return true }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if err := c.Do(t.Context(), "query-status", nil, &st); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoMonitorIsRefused(t *testing.T) {
	for _, hello := range []string{"SSH-2.0-x", strings.Repeat("x", qmp.MaxLine+5000)} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		if c, err := qmp.Dial(ctx, monitor(t, hello, func(string, int) string { return "" })); err == nil {
			c.Close()
			t.Errorf("%.10q is taken for one", hello)
		}
		cancel()
	}
}

func TestAClientAndAServerUnderstandEachOther(t *testing.T) {
	h, s := newHost()
	addr := listen(t, s)
	conn := dial(t, addr)
	c, err := qmp.NewClientOOB(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.OOB {
		t.Error("out of band is not enabled")
	}
	var wg sync.WaitGroup
	for i := range 8 { // commands of many goroutines, each with its answer
		wg.Go(func() {
			for j := range 50 {
				var id struct{ ID int }
				if err := c.Do(t.Context(), "echo", map[string]int{"id": i*100 + j}, &id); err != nil || id.ID != i*100+j {
					t.Errorf("%d, %v", id.ID, err)
				}
			}
		})
	}
	wg.Go(func() {
		for {
			r, err := c.Wait(t.Context(), func(event.Record) bool { return true })
			if err != nil {
				t.Error(err)
				return
			}
			if r.Event == (event.Stop{}) {
				return
			}
		}
	})
	wg.Go(func() {
		time.Sleep(time.Millisecond)
		if err := c.DoOOB(t.Context(), "query-yank", nil, nil); err != nil {
			t.Error(err)
		}
		if err := c.Do(t.Context(), "stop", nil, nil); err != nil {
			t.Error(err)
		}
	})
	wg.Wait()
	if h.RunState() != "paused" {
		t.Error("it runs")
	}
	var refused *qmp.Error
	if err := c.Do(t.Context(), "device_del", map[string]string{"id": "x"}, nil); !errors.As(err, &refused) || refused.Class != qmp.DeviceNotFound {
		t.Errorf("%v", err)
	}
}

func TestACommandThatIsGivenUpHarmsNoOther(t *testing.T) {
	release := make(chan struct{})
	h, s := newHost()
	_ = h
	qmp.Register(s.Commands, "slow", func(ctx context.Context, _ qmp.None) (qmp.None, error) {
		select {
		case <-release:
		case <-ctx.Done():
		}
		return qmp.None{}, nil
	})
	c, err := qmp.Dial(t.Context(), listen(t, s))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := c.Do(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	close(release)
	if err := c.Do(t.Context(), "query-name", nil, nil); err != nil {
		t.Errorf("the next one: %v", err)
	}
	c.Close()
	if err := c.Do(t.Context(), "query-name", nil, nil); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// A QEMU says why it ends, and ends. Who finds that out by a command that cannot be sent
// has not heard it yet.
func TestWhatAMonitorSaidBeforeItsEndIsHeardAfterACommandThatFails(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(socket.Dir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	near, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(far, "{\"QMP\": {\"version\": {\"qemu\": {\"major\": 7}}, \"capabilities\": []}}\r\n{\"return\": {}, \"id\": 1}\r\n")
	c, err := qmp.NewClient(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	said := "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 0}, \"event\": \"SHUTDOWN\", \"data\": {\"guest\": false, \"reason\": \"host-signal\"}}\r\n"
	io.WriteString(far, said)
	far.Close()
	for range 2 {
		if err := c.Do(t.Context(), "query-status", nil, nil); err == nil || t.Context().Err() != nil {
			t.Errorf("a command that cannot be sent: %v", err)
		}
	}
	r, err := c.Wait(t.Context(), func(event.Record) bool { return true })
	if e, ok := r.Event.(event.Shutdown); !ok || e.Reason != event.ShutdownHostSignal {
		t.Errorf("heard %+v, %v", r.Event, err)
	}
	if _, err := c.Wait(t.Context(), func(event.Record) bool { return true }); err == nil || t.Context().Err() != nil {
		t.Errorf("after its end: %v", err)
	}
}

func TestALineThatComesInPiecesIsOneThoughItsReaderGivesUp(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	go func() {
		fmt.Fprint(far, greeting, "\r\n")
		r := bufio.NewReader(far)
		r.ReadString('\n')
		fmt.Fprint(far, `{"return": {}, "id": 1}`+"\r\n", `{"timestamp": {"seconds": 1, "microseconds": 2}, "ev`)
	}()
	c, err := qmp.NewClient(t.Context(), near)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	all := func(event.Record) bool { return true }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Wait(ctx, all); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	go fmt.Fprint(far, `ent": "STOP"}`+"\r\n")
	if r, err := c.Wait(t.Context(), all); err != nil || r.Event != (event.Stop{}) {
		t.Errorf("%v, %v", r, err)
	}
}

func TestTheLinkToAMonitorMayBreakAnywhere(t *testing.T) {
	script := greeting + "\r\n" + `{"return": {}, "id": 1}` + "\r\n" + `{"return": {"status": "paused"}, "id": 2}` + "\r\n"
	for n := range len(script) {
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			go io.Copy(io.Discard, far)
			io.WriteString(far, script[:n])
			far.Close()
		}()
		c, err := qmp.NewClient(t.Context(), near)
		if err == nil {
			if err = c.Do(t.Context(), "query-status", nil, nil); err == nil {
				t.Errorf("cut after %d bytes: no error", n)
			}
			if _, err := c.Wait(t.Context(), func(event.Record) bool { return true }); err == nil {
				t.Errorf("cut after %d bytes: an event", n)
			}
			c.Close()
		}
		<-done
	}
}

// A QEMU tells the next client what it had not got rid of when the last one was killed,
// before it greets it.
func TestWhatTheClientBeforeHasNotReadIsPassedOver(t *testing.T) {
	const stop = `{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}` + "\r\n"
	for _, before := range []string{stop, stop[20:] + stop, stop + `{"return": {}}` + "\r\n" + `{"id": 1, "error": {"class": "GenericError", "desc": "x"}}` + "\r\n"} {
		addr := monitor(t, before+greeting, func(string, int) string { return `{"return": {}, "id": 1}` + "\r\n" })
		c, err := qmp.Dial(t.Context(), addr)
		if err != nil {
			t.Errorf("%q: %v", before, err)
			continue
		}
		if c.Version != "7.2.22" {
			t.Errorf("version %q", c.Version)
		}
		c.Close()
	}
	for _, before := range []string{strings.Repeat(stop, 1000), stop + stop[20:], `{"hello": 1}` + "\r\n"} {
		addr := monitor(t, before+greeting, func(string, int) string { return "" })
		if _, err := qmp.Dial(t.Context(), addr); !errors.Is(err, qmp.ErrProtocol) {
			t.Errorf("%.70q: %v", before, err)
		}
	}
}
