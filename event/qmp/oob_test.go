package qmp_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
)

// A QEMU 7.2.22 whose command was blocked, with out-of-band execution enabled,
// has been measured: with 7 more queued another one out of band is answered at
// once, with 8 it waits until one is taken off the queue.
func TestOutOfBandCommandsOvertakeUpToSevenThatWait(t *testing.T) {
	for _, c := range []struct {
		queued int
		want   string // the answers' ids in their order; | is where the one that blocks is let go
	}{
		{7, "oob | 0 1 2 3 4 5 6 7"},
		{8, "| 0 oob 1 2 3 4 5 6 7 8"},
	} {
		synctest.Test(t, func(t *testing.T) {
			_, s := newHost()
			release := make(chan struct{})
			qmp.Register(s.Commands, "block", func(context.Context, qmp.None) (qmp.None, error) {
				<-release
				return qmp.None{}, nil
			})
			// Each of the others takes as long as a QEMU needs to read on.
			qmp.Register(s.Commands, "brief", func(context.Context, qmp.None) (qmp.None, error) {
				time.Sleep(time.Second)
				return qmp.None{}, nil
			})
			conn, r, end := attach(t, s)
			defer end()
			r.ReadString('\n')
			say(t, conn, r, `{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}`)
			var in strings.Builder
			in.WriteString(`{"execute":"block","id":0}`)
			for i := range c.queued {
				fmt.Fprintf(&in, `{"execute":"brief","id":%d}`, i+1)
			}
			in.WriteString(`{"exec-oob":"query-yank","id":"oob"}`)
			go io.WriteString(conn, in.String())
			var mu sync.Mutex
			var got []string
			go func() {
				for {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					var a struct{ ID any }
					json.Unmarshal([]byte(line), &a)
					mu.Lock()
					got = append(got, fmt.Sprint(a.ID))
					mu.Unlock()
				}
			}()
			time.Sleep(time.Hour)
			synctest.Wait()
			mu.Lock()
			got = append(got, "|")
			mu.Unlock()
			close(release)
			time.Sleep(time.Hour)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("%d queued: got %s, want %s", c.queued, s, c.want)
			}
		})
	}
}

func TestWithoutOutOfBandNothingIsReadWhileACommandRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, s := newHost()
		release := make(chan struct{})
		qmp.Register(s.Commands, "block", func(context.Context, qmp.None) (qmp.None, error) {
			<-release
			return qmp.None{}, nil
		})
		conn, r, end := attach(t, s)
		defer end()
		r.ReadString('\n')
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		io.WriteString(conn, `{"execute":"block"}`)
		wrote := false
		go func() { io.WriteString(conn, `{"execute":"query-name","id":1}`); wrote = true }()
		time.Sleep(time.Hour)
		synctest.Wait()
		if wrote {
			t.Error("the next command was read")
		}
		close(release)
		for _, want := range []string{`{"return": {}}`, `{"return": {}, "id": 1}`} {
			if got, err := r.ReadString('\n'); strings.TrimSpace(got) != want {
				t.Errorf("%q, %v, want %s", got, err, want)
			}
		}
	})
}

func TestOutOfBandIsOfferedOnlyWhereACommandAllowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn, r, end := attach(t, &qmp.Server{})
		defer end()
		if hello, _ := r.ReadString('\n'); !strings.Contains(hello, `"capabilities": []`) {
			t.Error(hello)
		}
		if got := say(t, conn, r, `{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}`); !strings.Contains(got, "Capability oob is not available") {
			t.Error(got)
		}
		say(t, conn, r, `{"execute":"qmp_capabilities"}`)
		if got := say(t, conn, r, `{"execute":"quit"}`); !strings.Contains(got, "The command quit has not been found") {
			t.Errorf("nobody can be quit: %s", got)
		}
		if got, want := say(t, conn, r, `{"execute":"query-commands"}`),
			`{"return": [{"name": "qmp_capabilities"}, {"name": "query-commands"}, {"name": "query-events"}, {"name": "query-qmp-schema"}, {"name": "query-version"}]}`; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}
