package qmp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAddressesAreWrittenAsForQEMU(t *testing.T) {
	for in, want := range map[string]string{
		"unix:/a/b": "unix /a/b", "tcp:h:1": "tcp h:1", "h:1": "tcp h:1", "/a:1": "unix /a:1", "sock": "unix sock",
		"unix:/a,server=on,wait=off": "unix /a", "[::1]:5": "tcp [::1]:5",
	} {
		if n, a := Split(in); n+" "+a != want {
			t.Errorf("%q: %s %s, want %s", in, n, a, want)
		}
	}
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}`

// monitor answers commands as fn says, one line of command at a time.
func monitor(t *testing.T, hello string, fn func(line string, n int) string) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
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
	c, err := Dial(t.Context(), addr)
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
	var refused *Error
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
	for _, hello := range []string{"SSH-2.0-x", strings.Repeat("x", maxLine+5000)} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if c, err := Dial(ctx, monitor(t, hello, func(string, int) string { return "" })); err == nil {
			c.Close()
			t.Errorf("%.10q is taken for one", hello)
		}
		cancel()
	}
}
