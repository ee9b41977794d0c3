package netns

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// Echo has a client send n bytes to a server in the guest, which sends them back, and wants them back
// unchanged. The end of ctx ends it, and is why. It returns when all that it began has ended.
func Echo(ctx context.Context, t *testing.T, guest, client *Stack, addr netip.AddrPort, n int) {
	t.Helper()
	var l net.Listener
	guest.In(t, func() (err error) { l, err = net.Listen("tcp", addr.String()); return err })
	var served sync.WaitGroup
	defer served.Wait()
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	served.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		defer context.AfterFunc(ctx, func() { c.Close() })()
		if _, err := io.Copy(c, c); err != nil {
			t.Errorf("the server: %v", err)
		}
	})
	var c net.Conn
	err := client.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: time.Minute}).DialContext(ctx, "tcp", addr.String())
		return err
	})
	if err != nil {
		t.Fatal(err, context.Cause(ctx))
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.SetDeadline(time.Now().Add(time.Minute)) // so that a test that hangs says where
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	served.Go(func() {
		if _, err := c.Write(data); err != nil {
			t.Errorf("the client: %v", err)
		}
		c.(*net.TCPConn).CloseWrite()
	})
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came back: %v, %v", len(got), len(data), err, context.Cause(ctx))
	}
}
