package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gocolo/lockstep/replication/nbd"
)

// reached is the connections to a secondary that does not know yet whether it follows.
type reached struct {
	control              *control
	disk, sums, identity *nbd.Client
}

// close ends those connections that there are.
func (r *reached) close() {
	r.control.conn.Close()
	for _, c := range []*nbd.Client{r.disk, r.sums, r.identity} {
		if c != nil {
			c.Close()
		}
	}
}

// reach connects to the secondary, which goes on following whom it follows until Attach.
func (p *primary) reach(ctx context.Context) (*reached, error) {
	control, err := dialControl(ctx, p.o.secondary)
	if err != nil {
		return nil, err
	}
	to := &reached{control: control}
	names, err := control.ask(ctx, "hello", "export")
	if err == nil {
		disk, identity, _ := strings.Cut(names, " ")
		for _, export := range []struct {
			conn **nbd.Client
			name string
		}{{&to.disk, disk}, {&to.sums, "sums"}, {&to.identity, identity}} {
			if *export.conn, err = p.dial(ctx, export.name); err != nil {
				break
			}
		}
	}
	if err != nil {
		to.close()
		return nil, err
	}
	return to, nil
}

// dial connects to an export of the secondary.
func (p *primary) dial(ctx context.Context, export string) (*nbd.Client, error) {
	c, err := nbd.Dial(ctx, network(p.o.secondary), p.o.secondary, nbd.ClientConfig{Export: export})
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("the secondary at %s, export %q: %w", p.o.secondary, export, err)
	}
	return c, err
}

// lost returns err, which says which connection to the secondary is lost if it is one of conns. One that
// this side has ended is not lost.
func (p *primary) lost(err error, conns ...*nbd.Client) error {
	if err == nil {
		return nil
	}
	for _, c := range conns {
		if end := c.Err(); end != nil && !errors.Is(end, nbd.ErrClosed) {
			return fmt.Errorf("the connection to the secondary at %s, export %q, is lost: %w", p.o.secondary, c.Info().Name, err)
		}
	}
	return err
}
