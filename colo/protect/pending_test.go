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

// Whoever has begun to make the connections of a pair is not put out by another primary, and keeps
// another one out no longer than making them may take.
func TestAPrimaryIsRefusedWhileAnotherConnectsAndNoLonger(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		b := w.boot("b", false, nil)
		b.is(Waiting)
		comes := func(host string) error {
			here, there := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
			t.Cleanup(func() { there.Close() })
			_, _, why := b.job.admit(here, hello{Channel: chControl, Guest: "guest", Host: host, Generation: 1, Offer: b.job.offer()})
			return why
		}
		if err := comes("a"); err != nil {
			t.Fatal(err)
		}
		var refused *RefusedError
		if err := comes("c"); !errors.As(err, &refused) || refused.Reason != "b is busy with a" {
			t.Errorf("another primary: %v", err)
		}
		if err := comes("a"); err != nil {
			t.Errorf("the same one, which has begun again: %v", err)
		}
		time.Sleep(greetTime)
		if err := comes("c"); err != nil {
			t.Errorf("another primary, when the time of the first is over: %v", err)
		}
		b.halt()
	})
}
