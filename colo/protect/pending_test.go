package protect

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
)

// A primary that makes the connections of a pair may begin again, or end before it has been answered.
// Nothing of what it began with stays open.
func TestTheConnectionsOfAPairThatDoesNotComeAboutAreClosed(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		b.is(Waiting)
		comes := func(channel, token string) (there net.Conn, given string) {
			here, there := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
			h := hello{Channel: channel, Guest: "guest", Host: "a", Generation: 1, Token: token, Offer: b.job.offer()}
			given, _, why := b.job.admit(here, h)
			if why != nil {
				t.Fatal(why)
			}
			return there, given
		}
		over := func(what string, conn net.Conn) {
			t.Helper()
			conn.SetReadDeadline(time.Now().Add(time.Second))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("%s: %v, want that it was closed", what, err)
			}
		}
		first, token := comes(chControl, "")
		beat, _ := comes(chHeartbeat, token)
		second, token := comes(chControl, "")
		over("the control connection with which it began first", first)
		over("the heartbeat with which it began first", beat)

		beat, _ = comes(chHeartbeat, token)
		b.job.answered(token, errReset)
		over("a control connection beside one that was not answered", second)
		over("a heartbeat that was not answered", beat)
		b.halt()
	})
}
