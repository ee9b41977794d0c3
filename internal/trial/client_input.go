package trial

import (
	"net"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/guest"
)

// The client tells every vCPU one word after the other, and each again until it
// is answered.
const (
	tellEvery = time.Millisecond       // at most
	tellAgain = 250 * time.Millisecond // without an answer
)

// A talk is the client's side of the conversation with the guest. As a network
// learns from the last packet where the guest is, the client's words go to the side
// that took over last.
type talk struct {
	client *client
	stop   chan struct{}
}

// input is the client's way to a side.
type input struct {
	raw  net.Conn
	conn *filter.Conn
}

func newInput(c net.Conn) *input {
	return &input{c, filter.NewConn(c, filter.ConnConfig{})}
}

// run talks until stop is closed.
func (t *talk) run() {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	type said struct {
		m    uint64
		side string
		at   time.Time
	}
	last := make([]said, t.client.oracle.VCPUs())
	for {
		select {
		case <-t.stop:
			return
		case now := <-tick.C:
			for v := range last {
				in, side, to := t.client.next(v)
				l := &last[v]
				if to == nil || in.M == l.m && side == l.side && now.Sub(l.at) < tellAgain {
					continue
				}
				*l = said{in.M, side, now}
				// If the side is dead the packet is lost; the other side gets the next one.
				to.raw.SetWriteDeadline(time.Now().Add(patience))
				to.conn.WritePacket(t.client.vlan.Tag(in.AppendFrame(nil)))
			}
		}
	}
}

// next returns what a vCPU is to be told now, and the way to where it runs, nil
// if there is none yet.
func (c *client) next(vcpu int) (guest.Input, string, *input) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.oracle.Next(vcpu), c.guestAt, c.inputs[c.guestAt]
}
