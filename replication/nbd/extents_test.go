package nbd

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
)

// dribbling negotiates structured replies, and then answers each block status with extents of step
// bytes, so many at a time; asked counts them.
func dribbling(t *testing.T, size uint64, step uint32, count int) (c *Client, asked *int) {
	t.Helper()
	asked = new(int)
	client, server := net.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer server.Close()
		p := be64(magicServer)
		p = append(p, be64(magicOption)...)
		p = append(p, be16(flagFixedNewstyle|flagNoZeroes)...)
		server.Write(p)
		readFull(server, make([]byte, 4))
		for {
			head := make([]byte, 16)
			if readFull(server, head) != nil {
				return
			}
			opt := uint32(head[11])
			io.CopyN(io.Discard, server, int64(head[14])<<8+int64(head[15]))
			var p []byte
			switch opt {
			case optSetMeta:
				p = appendOptReply(p, opt, repMeta, append(be32(1), ContextAllocation...))
			case optGo:
				p = appendOptReply(p, opt, repInfo, append(append(be16(infoExport), be64(size)...), be16(flagHasFlags)...))
			}
			server.Write(appendOptReply(p, opt, repAck, nil))
			if opt == optGo {
				break
			}
		}
		for flags := uint32(0); ; {
			head := make([]byte, requestLen)
			var req request
			if readFull(server, head) != nil || req.parse(head) != nil || req.cmd != cmdBlockStatus {
				return
			}
			*asked++
			p := (&chunk{chunkDone, chunkStatus, req.handle, uint32(4 + count*extentLen)}).append(nil)
			p = append(p, be32(1)...)
			for range count {
				flags ^= StateHole | StateZero
				p = append(p, be32(step, flags)...)
			}
			server.Write(p)
		}
	}()
	c, err := NewClient(context.Background(), client, ClientConfig{})
	must(t, err)
	t.Cleanup(func() {
		c.Close()
		<-ended
	})
	return c, asked
}

func TestAServerThatTellsOfLittleAtATimeIsNotAskedOn(t *testing.T) {
	for _, x := range []struct {
		n       int64
		step    uint32
		count   int
		answers int
	}{
		{1 << 36, 1 << 30, 1, 64},
		{1 << 20, 4096, 1, 256},
		{8 << 20, 4096, 16, 128},
		{4 << 20, 1, 1, 256 + 64},
		{4096, 1, 1, 256},
		{256, 1, 1, 256},
	} {
		c, asked := dribbling(t, uint64(x.n), x.step, x.count)
		var told, zero int64
		must(t, c.Extents(0, x.n, func(n int64, flags uint32) bool {
			told += n
			if flags&StateZero != 0 {
				zero += n
			}
			return true
		}))
		if told != x.n || *asked != x.answers || zero != min(int64(x.answers)*int64(x.step)*int64(x.count), x.n)/2 {
			t.Errorf("%d bytes, %d at a time: %d were told of, %d of them zeroes, in %d answers, want %d", x.n, x.step, told, zero, *asked, x.answers)
		}
	}
	for n, answers := range map[int64]int{4096: 256 + 8, 64 << 10: 256 + 128} {
		c, asked := dribbling(t, uint64(n), 1, 1)
		var pe *ProtocolError
		err := c.Status(ContextAllocation, 0, n, func(int64, uint32) bool { return true })
		if !errors.As(err, &pe) || *asked != answers {
			t.Errorf("%d bytes in answers of one: %v, after %d", n, err, *asked)
		}
		must(t, c.Err())
	}
}

// All that such a server takes is the name of an export. It would take anything else for that.
func TestNoOptionsAreSentToAServerThatKnowsNone(t *testing.T) {
	_, ccfg := certificates(t)
	for name, ask := range map[string]func(conn net.Conn) error{
		"a list": func(conn net.Conn) error {
			_, err := List(t.Context(), conn, ClientConfig{})
			return err
		},
		"TLS": func(conn net.Conn) error {
			_, err := NewClient(t.Context(), conn, ClientConfig{TLS: ccfg})
			return err
		},
		"a list by TLS": func(conn net.Conn) error {
			_, err := List(t.Context(), conn, ClientConfig{TLS: ccfg})
			return err
		},
	} {
		client, server := net.Pipe()
		sent := make(chan []byte)
		go func() {
			server.Write(append(append(be64(magicServer), be64(magicOption)...), 0, 0))
			p, _ := io.ReadAll(server)
			sent <- p
		}()
		wantErr(t, name, ask(client), errors.ErrUnsupported)
		if p := <-sent; len(p) != 4 {
			t.Errorf("%s: the server was sent % x", name, p)
		}
		server.Close()
	}
}
