package standby

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestControlMessagesComeAsTheyWereSent(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	list := []ControlMessage{
		{Say: SaidHello, Version: ControlVersion, Generation: 3, Ready: true},
		{Say: SaidBeat, Generation: 3, Epoch: 1 << 60, Bytes: 7},
		{Say: SaidPlanned, Generation: 3, Why: "guest-shutdown"},
		{Say: SaidDead, Generation: 3, Why: strings.Repeat("\x00", 2*MaxControl)},
		{Say: SaidRuns, Generation: 4},
	}
	sent := make(chan error, 1)
	go func() {
		c := NewControl(a)
		for _, m := range list {
			if err := c.Send(m, time.Minute); err != nil {
				sent <- err
				return
			}
		}
		a.Close()
		sent <- nil
	}()
	c := NewControl(b)
	for _, want := range list {
		got, err := c.Receive(time.Minute)
		if len(want.Why) > MaxControl { // words are cut, not what matters
			got.Why, want.Why = "", ""
		}
		if err != nil || got != want {
			t.Errorf("%+v, %v, want %+v", got, err, want)
		}
	}
	if _, err := c.Receive(time.Minute); err != io.EOF {
		t.Errorf("the end is %v", err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestWhatIsNoControlMessageIsRefused(t *testing.T) {
	for _, line := range []string{
		"", "{}", "[]", "GET / HTTP/1.0", `{"say":"hello"}`, `{"say":"hello","version":2}`, `{"say":"beat","version":1}`, `{"say":"nonsense"}`,
		`{"say":"beat","generation":-1}`, `{"say":"beat","generation":18446744073709551616}`, `{"say":"dead","why":"` + strings.Repeat("x", MaxControl) + `"}`,
	} {
		if m, err := ParseControl([]byte(line)); !errors.Is(err, ErrControl) || m != (ControlMessage{}) {
			t.Errorf("%.60q: %+v, %v", line, m, err)
		}
		a, b := net.Pipe()
		go func() { a.Write([]byte(line + "\n")); a.Close() }()
		if _, err := NewControl(b).Receive(time.Minute); !errors.Is(err, ErrControl) {
			t.Errorf("%.60q: received as %v", line, err)
		}
		b.Close()
	}
}

func TestAWordIsAboutOneGeneration(t *testing.T) {
	for _, c := range []struct {
		m    ControlMessage
		copy uint64
		want Word
	}{
		{ControlMessage{Say: SaidDead, Generation: 2}, 2, Dead},
		{ControlMessage{Say: SaidDead, Generation: 2}, 3, NoWord},
		{ControlMessage{Say: SaidDead, Generation: 3}, 2, Alone}, // it ran on without this copy, and died then
		{ControlMessage{Say: SaidAlone, Generation: 3}, 2, Alone},
		{ControlMessage{Say: SaidAlone, Generation: 2}, 2, NoWord},
		{ControlMessage{Say: SaidPlanned, Generation: 3}, 2, Planned},
		{ControlMessage{Say: SaidStopped, Generation: 2}, 2, Stopped},
		{ControlMessage{Say: SaidHello, Generation: 2}, 2, NoWord},
		{ControlMessage{Say: SaidHello, Generation: 3}, 2, Alone},
		{ControlMessage{Say: SaidBeat, Generation: 1}, 2, NoWord},
	} {
		if got := c.m.WordFor(c.copy); got != c.want {
			t.Errorf("%+v about a copy of %d: %v, want %v", c.m, c.copy, got, c.want)
		}
	}
}

// Whoever has something urgent to say waits no longer than it wants to, though another message is stuck on
// a side that reads nothing.
func TestAMessageWaitsForOthersNoLongerThanItMayTake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		c := NewControl(here)
		begun, stuck := time.Now(), make(chan error, 1)
		go func() { stuck <- c.Send(ControlMessage{Say: SaidBeat, Generation: 1}, time.Minute) }()
		synctest.Wait()
		if err := c.Send(ControlMessage{Say: SaidRuns, Generation: 2}, time.Second); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the second: %v", err)
		}
		if d := time.Since(begun); d != time.Second {
			t.Errorf("it took %v", d)
		}
		if err := <-stuck; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begun) != time.Minute {
			t.Errorf("the first: %v, after %v", err, time.Since(begun))
		}
	})
}

// A line that ParseControl accepts is written and parsed again: it then has the same meaning.
func FuzzParseControl(f *testing.F) {
	for _, s := range []Said{SaidHello, SaidBeat, SaidProtect, SaidPlanned, SaidDead, SaidAlone, SaidStopped, SaidWants, SaidRuns} {
		f.Add([]byte(`{"say":"` + string(s) + `","version":1,"generation":3,"ready":true,"epoch":9,"bytes":1,"why":"x"}`))
		f.Add([]byte(`{"say":"` + string(s) + `"}`))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := ParseControl(line)
		if err != nil {
			if !errors.Is(err, ErrControl) {
				t.Fatalf("%v", err)
			}
			return
		}
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > MaxControl {
			return
		}
		if again, err := ParseControl(b); err != nil || again != m {
			t.Fatalf("%q: %+v, then %+v, %v", line, m, again, err)
		}
	})
}
