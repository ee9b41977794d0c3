package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/replication/nbd"
)

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
