package protect

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// An aWay is what becomes of a connection to one address.
type aWay struct {
	after time.Duration // 0: for ever, unless refused
	err   error
}

func TestADeadAddressOfTheOtherHostKeepsNoneBack(t *testing.T) {
	for _, c := range []struct {
		name string
		ways []aWay
		want int           // which connection; -1: none
		took time.Duration // until then
	}{
		{"the first answers", []aWay{{time.Millisecond, nil}, {time.Millisecond, nil}}, 0, time.Millisecond},
		{"the first is silent", []aWay{{}, {time.Millisecond, nil}}, 1, nextAddress + time.Millisecond},
		{"two are silent", []aWay{{}, {}, {time.Millisecond, nil}}, 2, 2*nextAddress + time.Millisecond},
		{"the first refuses", []aWay{{time.Millisecond, syscall.ECONNREFUSED}, {time.Millisecond, nil}}, 1, 2 * time.Millisecond},
		{"the first is slow, and the second silent", []aWay{{2 * nextAddress, nil}, {}}, 0, 2 * nextAddress},
		{"both refuse", []aWay{{time.Millisecond, syscall.ECONNREFUSED}, {time.Millisecond, net.ErrClosed}}, -1, 2 * time.Millisecond},
		{"both are silent", []aWay{{}, {}}, -1, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			var addresses []netip.AddrPort
			var made []*closes
			for i := range c.ways {
				addresses = append(addresses, netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), uint16(i)))
				made = append(made, &closes{})
			}
			began := time.Now()
			conn, err := dialAny(ctx, addresses, func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
				w := c.ways[at.Port()]
				answer := make(<-chan time.Time)
				if w.after > 0 {
					answer = time.After(w.after)
				}
				select {
				case <-answer:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
				if w.err != nil {
					return nil, w.err
				}
				return made[at.Port()], nil
			})
			if took := time.Since(began); took != c.took {
				t.Errorf("%s: it took %v, want %v", c.name, took, c.took)
			}
			switch {
			case c.want < 0:
				if want := c.ways[0].err; conn != nil || err == nil || want != nil && err != want {
					t.Errorf("%s: %v, %v", c.name, conn, err)
				}
			case err != nil || conn != net.Conn(made[c.want]):
				t.Errorf("%s: %v, %v, want connection %d", c.name, conn, err, c.want)
			}
			for i, m := range made {
				if i == c.want && m.closed {
					t.Errorf("%s: the connection is closed", c.name)
				}
			}
		})
	}
}

// A connection that is made too late does not stay.
func TestAConnectionThatIsMadeSecondIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		late := &closes{}
		addresses := make([]netip.AddrPort, 2)
		addresses[1] = netip.AddrPortFrom(netip.MustParseAddr("10.0.0.2"), 2)
		conn, err := dialAny(t.Context(), addresses, func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
			if at.IsValid() {
				return &closes{}, nil
			}
			<-ctx.Done() // it is made at that very moment
			return late, nil
		})
		if err != nil || conn == net.Conn(late) || !late.closed {
			t.Errorf("%v, %v; the second is closed: %t", conn, err, late.closed)
		}
	})
}

// closes is a connection that can be closed.
type closes struct {
	net.Conn
	closed bool
}

func (c *closes) Close() error { c.closed = true; return nil }

func TestOnlyANameHasSeveralAddresses(t *testing.T) {
	for _, address := range []string{"127.0.0.1:1", "[::1]:1", "[fe80::1%lo]:1", ":1", "127.0.0.1", ""} {
		if all := addressesOf(t.Context(), address); all != nil {
			t.Errorf("%q: %v", address, all)
		}
	}
	for _, at := range addressesOf(t.Context(), "localhost:7654") { // none where it has no name
		if !at.Addr().IsLoopback() || at.Port() != 7654 {
			t.Errorf("localhost is %v", at)
		}
	}
}
