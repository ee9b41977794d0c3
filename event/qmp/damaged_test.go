package qmp_test

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/damage"
)

// Whatever a monitor says before it closes the connection, the caller gets an answer or an error, and the next
// one an error.
func TestAMonitorThatIsDamagedAnywhereKeepsNobodyWaiting(t *testing.T) {
	script := greeting + "\r\n" + `{"return": {}, "id": 1}` + "\r\n" +
		`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}` + "\r\n" + `{"return": {"status": "paused"}, "id": 2}` + "\r\n"
	try := func(how, said string) {
		t.Helper()
		near, far := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer far.Close()
			heard := make(chan struct{})
			go func() { defer close(heard); io.Copy(io.Discard, far) }()
			io.WriteString(far, said)
			far.Close()
			<-heard
		}()
		c, err := qmp.NewClient(t.Context(), near)
		if err == nil {
			var st struct{ Status string }
			c.Do(t.Context(), "query-status", nil, &st)
			for range 2 { // an event, and what is told of the end
				_, err = c.Wait(t.Context(), func(event.Record) bool { return true })
			}
			if err == nil {
				_, err = c.Wait(t.Context(), func(event.Record) bool { return false })
			}
			if err == nil {
				t.Errorf("%s: the end of the connection is not told", how)
			}
			c.Close()
		}
		<-done
	}
	for i := range len(script) {
		for bit := range 8 {
			p := []byte(script)
			p[i] ^= 1 << bit
			try(fmt.Sprintf("bit %d of byte %d", bit, i), string(p))
		}
	}
	cuts := []int{0}
	for i := range script {
		if script[i] == '\n' {
			cuts = append(cuts, i+1)
		}
	}
	for how, p := range damage.Copies(1, 2000, damage.Input{Bytes: []byte(script), Cuts: cuts}) {
		try(how, string(p))
	}
}
