package main

import (
	"context"
	"net"

	"github.com/gocolo/lockstep/examples/internal/strangers"
)

// maxVisitors is how many connections to a page there are at a time. One more ends the oldest: without
// a bound whoever connects to the page could take the descriptors that the guest needs.
const maxVisitors = 64

// visitors lets as many connections of a listener in as there may be.
type visitors struct {
	net.Listener
	ctx  context.Context // ends with the listener
	room strangers.Room
}

func newVisitors(ctx context.Context, l net.Listener) *visitors {
	return &visitors{Listener: l, ctx: ctx, room: strangers.Room{Max: maxVisitors}}
}

// Accept implements net.Listener.
func (v *visitors) Accept() (net.Conn, error) {
	conn, err := v.room.Accept(v.ctx, v.Listener)
	if err != nil {
		return nil, err
	}
	return &visitor{conn, &v.room}, nil
}

// visitor is one of the connections; Close gives its place back.
type visitor struct {
	net.Conn
	room *strangers.Room
}

// Close implements net.Conn.
func (v *visitor) Close() error {
	v.room.Leave(v.Conn)
	return v.Conn.Close()
}
