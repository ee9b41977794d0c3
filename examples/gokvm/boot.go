package main

import (
	"context"
)

// boot runs a guest that nobody protects.
func boot(ctx context.Context, o options, c *console, p *printer) (err error) {
	if err := o.hw.probe(); err != nil {
		return err
	}
	s := newSide(ctx, o, c, p)
	defer func() { err = s.close(err) }()
	if s.disk, err = openDisk(ctx, o, p, &s.events); err != nil {
		return err
	}
	t, err := openCable(o)
	if err != nil {
		return err
	}
	g := newGuest(o)
	if err := s.build(newNetwork(o, t, false, g, nil), g); err != nil {
		return err
	}
	s.listen(nil)
	s.run()
	if err := s.guest.Resume(ctx); err != nil {
		return err
	}
	select {
	case err := <-s.ended:
		return s.guestEnded(err)
	case <-ctx.Done():
		p.phase("ended", "as ordered")
		return nil
	}
}

// guestEnded is the end of a guest that nobody follows.
func (s *side) guestEnded(err error) error {
	how := howEnded(err)
	if how == "" {
		return err
	}
	err = s.rest()
	s.p.phase("ended", "%s", how)
	return err
}
