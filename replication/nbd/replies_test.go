package nbd

import (
	"context"
	"net"
	"sync"
	"testing"
)

// A client waits for the last of the replies to an option, so that the server sends them together:
// a greeting, and one answer each to structured replies, contexts and the choice of the export.
func TestTheRepliesToAnOptionAreSentTogether(t *testing.T) {
	srv := NewServer(ServerConfig{})
	_, err := srv.Export(ExportConfig{Disk: newRAM(4096)})
	must(t, err)
	a, b := net.Pipe()
	server := &countedConn{Conn: b}
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		if err := srv.ServeConn(context.Background(), server); err != nil {
			t.Error(err)
		}
	})
	c, err := NewClient(context.Background(), a, ClientConfig{})
	must(t, err)
	if n := server.count(); n != 4 {
		t.Errorf("%d writes", n)
	}
	must(t, c.Close())
}

// Replies of which there are many leave before the last is there.
func TestManyRepliesAreSentInPieces(t *testing.T) {
	a, b := net.Pipe()
	server := &countedConn{Conn: b}
	n := &negotiation{conn: server}
	data := make([]byte, 1000)
	var group sync.WaitGroup
	group.Go(func() {
		defer b.Close()
		for range 100 {
			if err := n.reply(optList, repServer, data); err != nil {
				t.Error(err)
			}
		}
		if err := n.reply(optList, repAck, nil); err != nil {
			t.Error(err)
		}
	})
	d := &dialogue{conn: a, r: newReader(a)}
	for range 100 {
		if typ, p, err := d.reply(optList); err != nil || typ != repServer || len(p) != len(data) {
			t.Fatalf("%d, %d bytes, %v", typ, len(p), err)
		}
	}
	if typ, _, err := d.reply(optList); err != nil || typ != repAck {
		t.Errorf("%d, %v", typ, err)
	}
	group.Wait()
	if got := server.count(); got < 4 || got > 10 || cap(n.out) > 4*mostReplies {
		t.Errorf("%d writes, %d bytes", got, cap(n.out))
	}
}
