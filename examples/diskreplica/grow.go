package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/gocolo/lockstep/replication"
)

// longer returns the size that the command line names, if it is "grow SIZE".
func longer(line string) (size int64, is bool, err error) {
	text, is := strings.CutPrefix(line, "grow ")
	if !is {
		return 0, false, nil
	}
	if size, err = parseSize(strings.TrimSpace(text)); err != nil {
		err = fmt.Errorf("%q is no size: %w", text, err)
	}
	return size, true, err
}

// grow makes the secondary's image longer, before the primary's, or alone once this side has gone on.
func (s *secondary) grow(ctx context.Context, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.disk.Grow(ctx, size); err != nil {
		return err
	}
	s.returned(map[string]any{"size": size}, "grown: the disk has %d bytes, also for who connects from now on", size)
	return nil
}

// grow makes the primary's image longer. The secondary, if one is attached, has grown before: this
// side has new connections to it from now on, which see the new size.
func (p *primary) grow(ctx context.Context, size int64) (err error) {
	if p.linked() {
		err = p.growBoth(ctx, size)
	} else {
		err = p.disk.Grow(ctx, size, nil)
	}
	if err != nil {
		return err
	}
	p.returned(map[string]any{"size": size}, "grown: the disk has %d bytes, also for who connects from now on", size)
	return nil
}

func (p *primary) growBoth(ctx context.Context, size int64) error {
	conn, err := p.dial(ctx, p.conn.Info().Name)
	if err != nil {
		return err
	}
	identity, err := p.dial(ctx, p.identity)
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	defer abortAfter(ctx, conn, identity)()
	remote := replication.WithIdentity(conn, identity)
	if err := p.disk.Grow(ctx, size, remote); err != nil {
		return errors.Join(p.lost(err, p.conn, conn, identity), remote.Close())
	}
	p.conn = conn
	return nil
}
