package qmp_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// talks returns a client to whose first command a monitor says n events first, each with so many bytes of padding.
func talks(t *testing.T, n, padding int) *qmp.Client {
	t.Helper()
	said := strings.Repeat("x", padding)
	c, err := qmp.Dial(t.Context(), monitor(t, greeting, func(line string, id int) string {
		var b strings.Builder
		for i := range n {
			if id == 1 {
				break // which makes it ready for commands
			}
			fmt.Fprintf(&b, `{"timestamp": {"seconds": %d, "microseconds": 0}, "event": "SAID", "data": {"said": "%s"}}`+"\r\n", i, said)
		}
		fmt.Fprintf(&b, `{"return": {}, "id": %d}`+"\r\n", id)
		return b.String()
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Do(t.Context(), "query-status", nil, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

// wantKept takes the events that c has kept, which are the newest of n.
func wantKept(t *testing.T, c *qmp.Client, n, kept int) {
	t.Helper()
	if c.Missed() != uint64(n-kept) {
		t.Errorf("%d of %d events were dropped, want %d", c.Missed(), n, n-kept)
	}
	for i := n - kept; i < n; i++ {
		r, err := c.Wait(t.Context(), func(event.Record) bool { return true })
		if err != nil || r.Time.Unix() != int64(i) {
			t.Fatalf("event %v, %v, want number %d", r.Time.Unix(), err, i)
		}
	}
	if c.Pending(func(event.Record) bool { return true }) {
		t.Error("there are more")
	}
}

func TestNoMoreEventsAreKeptThanMayBe(t *testing.T) {
	wantKept(t, talks(t, qmp.MaxPending+3, 0), qmp.MaxPending+3, qmp.MaxPending)
}

// However few events there are: a monitor decides how long each of them is.
func TestNoMoreBytesOfEventsAreKeptThanMayBe(t *testing.T) {
	if testing.Short() {
		t.Skip("a monitor says 40 MiB")
	}
	wantKept(t, talks(t, 3, qmp.MaxPendingBytes/2-1000), 3, 2)
	// What was taken makes room, and one that is as long as a line may be is kept, alone.
	c := talks(t, 1, qmp.MaxLine-1000)
	wantKept(t, c, 1, 1)
	if err := c.Do(t.Context(), "query-status", nil, nil); err != nil {
		t.Fatal(err)
	}
	wantKept(t, c, 1, 1)
}
