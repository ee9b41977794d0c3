package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

// boot runs a guest that stays on this host.
func boot(ctx context.Context, o options, c *console, p *printer) (err error) {
	if err := o.hw.probe(); err != nil {
		return err
	}
	d, err := openDisk(o, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	var storage gokvmhost.Disk // nil, not a nil *disk's
	if d != nil {
		storage = d.view()
	}
	s, err := newSolo(ctx, o, c, p, storage)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.begin(ctx, s.press); err != nil {
		return err
	}
	select {
	case err := <-s.ended:
		return s.finish(err)
	case <-ctx.Done():
		p.phase("ended", "as ordered")
		return nil
	}
}

// press is a key after Ctrl-A.
func (s *solo) press(key byte) {
	if key == 'i' {
		s.p.say("%s", s.p.progress())
	}
}

// openCable opens the interface of the guest's network card, nil for none.
func openCable(o options) (cable, error) {
	if o.tap == "" {
		return nil, nil
	}
	c, err := o.hw.cable(o)
	if err != nil {
		return nil, fmt.Errorf("-tap: %w", err)
	}
	return c, nil
}
