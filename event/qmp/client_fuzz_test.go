package qmp_test

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
)

// FuzzClient has a monitor say anything, also in the lines of one: whatever that is, who asks it gets an answer or an
// error, and hears of the end.
func FuzzClient(f *testing.F) {
	lines := []string{greeting + "\r\n", `{"return": {}, "id": 1}` + "\r\n", `{"return": {"status": "paused"}, "id": 2}` + "\r\n",
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}` + "\r\n", `{"error": {"class": "GenericError", "desc": "no"}, "id": 2}` + "\n",
		`{"return": null, "id": 3}` + "\n", `{"event": "RESUME"`, "\n", `"`, "}", `{"QMP": `, "\xff", "{\"id\": 1}\n", "[]\n", " \r\n"}
	f.Add([]byte{}, []byte{0, 1, 3, 2, 4})
	f.Add([]byte(`{"return": [1], "id": 2}`+"\n"), []byte{0, 1})
	f.Add([]byte(`"event": "STOP"}`+"\n"), []byte{})
	f.Add([]byte(`{"QMP": {"version": {"qemu": {"major": -1}}}}`), []byte{7, 0, 1, 12, 5})
	f.Fuzz(func(t *testing.T, in, choice []byte) {
		near, far := net.Pipe()
		heard := make(chan struct{})
		go func() { defer close(heard); io.Copy(io.Discard, far) }()
		said := make(chan struct{})
		go func() {
			defer close(said)
			for _, c := range choice {
				io.WriteString(far, lines[int(c)%len(lines)])
			}
			far.Write(in)
			far.Close()
		}()
		c, err := qmp.NewClientOOB(context.Background(), near)
		if err == nil {
			var st struct{ Status string }
			c.Do(context.Background(), "query-status", nil, &st)
			for range qmp.MaxPending + 1 {
				if _, err = c.Wait(context.Background(), func(event.Record) bool { return true }); err != nil {
					break
				}
			}
			if err == nil {
				t.Error("the end of the connection is not told")
			}
			c.Close()
		} else if c != nil {
			t.Error("a client, and an error")
		}
		near.Close()
		<-said
		<-heard
	})
}
