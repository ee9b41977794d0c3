package nbd

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// A client that comes behind a throng of connections that say nothing gets in before it gives up.
func TestAClientGetsInBehindAThrongThatSaysNothing(t *testing.T) {
	const room = 8
	servePipes(t, ServerConfig{MaxConns: room}, ErrServerClosed, func(l *pipes) {
		var silent []net.Conn
		for range 50 * room {
			silent = append(silent, l.connect())
			synctest.Wait() // they come in order
		}
		begin := time.Now()
		c, err := NewClient(context.Background(), l.connect(), ClientConfig{})
		must(t, err)
		if d := time.Since(begin); d > 10*silence {
			t.Errorf("a client got in after %v", d)
		}
		must(t, c.Close())
		for _, s := range silent {
			s.Close()
		}

		// The hurry passes with the crowd.
		time.Sleep(time.Hour)
		for range 2 * room * haste {
			c, err := NewClient(context.Background(), l.connect(), ClientConfig{})
			must(t, err)
			must(t, c.Close())
			time.Sleep(time.Millisecond)
		}
		for range room {
			silent = append(silent, l.connect())
			synctest.Wait()
		}
		begin = time.Now()
		c, err = NewClient(context.Background(), l.connect(), ClientConfig{})
		must(t, err)
		if d := time.Since(begin); d != time.Second { // as the comment of MaxConns says
			t.Errorf("a connection was given %v to say something", d)
		}
		must(t, c.Close())
		for _, s := range silent {
			s.Close()
		}
	})
}
