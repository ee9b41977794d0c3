package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// alone returns a roamer whose other host is dead, and what it says.
func alone(ctx, ordered context.Context, giveUp time.Duration) (*roamer, *bytes.Buffer) {
	said := new(bytes.Buffer)
	std := stdio{strings.NewReader(""), said, io.Discard}
	o := options{json: true, peer: "b:1", giveUp: giveUp}
	o.hw.dial = func(context.Context, string) (net.Conn, error) { return nil, errors.New("nobody is there") }
	return &roamer{o: o, p: newPrinter(o, std, newConsole(std, true, nil)), life: ctx, ordered: ordered, goOn: make(chan struct{}, 1)}, said
}

// How long a guest waits for the part of its memory that is on a host that is dead.
func TestAGuestWaitsForItsOtherHalfForSoLong(t *testing.T) {
	const last = 5 * time.Second // after an order to end
	for name, x := range map[string]struct {
		giveUp, order, want time.Duration // 0: never
		says                string
	}{
		"for ever":                    {0, 0, 0, "for as long as it takes"},
		"with -give-up":               {time.Minute, 0, time.Minute, "for 1m0s"},
		"with an order":               {0, time.Minute, time.Minute + last, "5s after an order to end"},
		"an order, long -give-up":     {time.Hour, time.Minute, time.Minute + last, "for 1h0m0s"},
		"an order, -give-up is short": {time.Second, 500 * time.Millisecond, time.Second, "for 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, end := context.WithCancel(t.Context())
				ordered, order := context.WithCancel(t.Context())
				defer end()
				defer order()
				r, said := alone(ctx, ordered, x.giveUp)
				if x.order > 0 {
					time.AfterFunc(x.order, order)
				}
				if x.want == 0 {
					time.AfterFunc(1000*time.Hour, end)
				}
				begun := time.Now()
				_, err := (&arrival{r: r, came: make(chan struct{}, 1)}).reconnect(ctx, errors.New("cut"))
				took := time.Since(begun)
				if x.want == 0 && !errors.Is(err, context.Canceled) || x.want > 0 && (!errors.Is(err, errHalf) || took != x.want) {
					t.Errorf("%v after %v", err, took)
				}
				if !strings.Contains(said.String(), x.says) || !strings.Contains(said.String(), "then the guest is lost") {
					t.Errorf("it says %s", said)
				}
			})
		})
	}
}

// A host that has sent a guest to one that is dead now can be ended by one order.
func TestAHostWhoseGuestIsOnADeadOneCanBeEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ordered, order := context.WithCancel(t.Context())
		defer order()
		r, said := alone(t.Context(), ordered, 0)
		r.goOn <- struct{}{} // nothing was to be decided when that was said
		d := &departure{r: r}
		time.AfterFunc(time.Hour, order)
		begun := time.Now()
		_, err := d.reconnect(t.Context(), errors.New("cut"))
		if took := time.Since(begun); !errors.Is(err, errLeft) || took < time.Hour || took > time.Hour+6*time.Second {
			t.Errorf("%v after %v", err, took)
		}
		if err := d.find(err); !errors.Is(err, errNowhere) || time.Since(begun) > time.Hour+6*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		if !strings.Contains(said.String(), "Ctrl-A g lets the guest go on here") {
			t.Errorf("it says %s", said)
		}
	})
}

// ended reports whether the other end of a connection was closed.
func ended(t *testing.T, peer net.Conn) bool {
	t.Helper()
	peer.SetReadDeadline(time.Now().Add(time.Second))
	_, err := peer.Read(make([]byte, 1))
	return errors.Is(err, io.EOF)
}

// A source that connects again and again, while its guest's arrival has not noticed that a
// connection is broken, keeps nobody waiting here: the last connection counts, and the
// others are closed.
func TestOfConnectionsThatAreMadeAgainTheLastCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := alone(t.Context(), t.Context(), 0)
		var links []*link
		var peers []net.Conn
		for range 5 {
			x, y := net.Pipe()
			links, peers = append(links, &link{Conn: x, raw: x}), append(peers, y)
		}
		a := &arrival{r: r, came: make(chan struct{}, 1), link: links[0]}
		for _, l := range links[1:4] {
			a.again(l)
		}
		for i, p := range peers[:4] {
			if got := ended(t, p); got != (i < 3) {
				t.Errorf("connection %d is closed: %t", i, got)
			}
		}
		heard := make(chan moveAnswer, 1)
		hear := func(p net.Conn) {
			p.SetReadDeadline(time.Time{})
			var m moveAnswer
			if err := readMessage(p, &m); err != nil {
				t.Error(err)
			}
			heard <- m
		}
		go hear(peers[3])
		conn, err := a.reconnect(t.Context(), errors.New("cut"))
		if err != nil || conn != links[3] || (<-heard).State != moveGoesOn {
			t.Errorf("%v, %v", conn, err)
		}
		// One that nobody has taken hears how it has ended, as does one that comes later.
		a.again(links[4])
		go hear(peers[4])
		a.end(movedHere)
		if m := <-heard; m.State != movedHere {
			t.Errorf("%+v", m)
		}
		x, y := net.Pipe()
		go a.again(&link{Conn: x, raw: x})
		go hear(y)
		if m := <-heard; m.State != movedHere {
			t.Errorf("%+v", m)
		}
		r.group.Wait()
	})
}
