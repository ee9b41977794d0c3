package qmp_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/leaks"
	"github.com/gocolo/lockstep/internal/socket"
)

func TestAMonitorThatCannotBeHadLeavesNothingBehind(t *testing.T) {
	dir := socket.Dir(t)
	at := filepath.Join(dir, "s")
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	leaks.Starve(t, func() error {
		l, err := qmp.Listen("unix:" + at)
		if err != nil {
			return err
		}
		return l.Close()
	}, dir)
	before := leaks.Now(t, dir)
	for _, bad := range []string{"unix:" + image, "unix:" + filepath.Join(dir, "none", "s"), "unix:", "tcp:127.0.0.1:no", "tcp:256.0.0.1:1"} {
		if l, err := qmp.Listen(bad); err == nil {
			l.Close()
			t.Errorf("it listens at %s", bad)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, bad := range []string{"unix:" + image, "unix:" + at, "unix:"} {
		if c, err := qmp.Dial(t.Context(), bad); err == nil {
			c.Close()
			t.Errorf("%s is a monitor", bad)
		}
	}
	if _, err := qmp.Dial(ctx, "tcp:127.0.0.1:1"); !errors.Is(err, context.Canceled) {
		t.Errorf("where there is no time: %v", err)
	}
	before.Check(t, "monitors that could not be had")
}

// The monitor says so many bytes and hangs up, or says no more and the caller has no more time.
func TestAClientThatIsNotGreetedLeavesNothingBehind(t *testing.T) {
	dir := socket.Dir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	script := greeting + "\r\n" + `{"return": {}, "id": 1}` + "\r\n"
	dial := func(n int, stays bool) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		served := make(chan struct{})
		go func() {
			defer close(served)
			conn, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, script[:n])
			if stays {
				time.AfterFunc(time.Millisecond, cancel)
				io.Copy(io.Discard, conn)
			}
		}()
		c, err := qmp.Dial(ctx, "unix:"+l.Addr().String())
		if err == nil {
			c.Close()
			t.Errorf("after %d bytes there is a client", n)
		}
		<-served
	}
	dial(0, false)
	before := leaks.Now(t, dir)
	for n := 0; n < len(script)-1; n += 7 {
		dial(n, false)
		dial(n, true)
	}
	before.Check(t, "clients that were not greeted")
}
