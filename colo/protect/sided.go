package protect

import (
	"context"
	"net"
)

// A Sided is a [Network] that does something else on each side, and has a
// connection of its own between the hosts in each session. [Proxy] is one. Its
// methods are called by the job, one at a time, but for Serve.
type Sided interface {
	Network
	// Link tells the networks of a guest apart by a name of at most 64 bytes, and
	// says on what terms the two sides work together. Both are the same on both
	// hosts, or they refuse each other before a session begins.
	Link() (name, terms string)
	// Lead is called before each session that this host leads, while the guest
	// runs here, and Register after it. An error ends the attempt; there is another
	// a second later, and Info.LastError says why.
	Lead(ctx context.Context) error
	// Follow is called before each session that this host follows, while the
	// guest stands still, and Register after it. An error ends the attempt: primaries are
	// refused, and told why, and it is called again each second, without a session, until it
	// succeeds.
	Follow(ctx context.Context) error
	// Serve uses a session's connection, which it owns, until that or ctx ends.
	Serve(ctx context.Context, conn net.Conn)
	// Runs says that the guest is about to stand still, or that it runs, on either
	// side. It is called around each pause. The guest stands still at first.
	Runs(on bool)
}

// sided calls f for the networks that are Sided, until an error.
func sided(all []Network, f func(Sided) error) error {
	for _, n := range all {
		if s, ok := n.(Sided); ok {
			if err := f(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// compares reports whether one of the networks is Sided: the guest of the secondary has to run then, for
// what it says is compared.
func compares(all []Network) (any bool) {
	sided(all, func(Sided) error { any = true; return nil })
	return any
}

// chNIC begins the channel of a Sided network, whose name follows.
const chNIC = "nic:"

// channels returns the channels of the disks and networks, one connection each.
func (c *Config) channels() (all []string) {
	for _, d := range c.Disks {
		of := d.channels()
		all = append(all, of[:]...)
	}
	sided(c.Network, func(s Sided) error {
		name, _ := s.Link()
		all = append(all, chNIC+name)
		return nil
	})
	return all
}

// serveNetworks gives a session's connections to the networks that have one. spawn
// runs a function on a goroutine.
func (j *Job) serveNetworks(ctx context.Context, s *session, spawn func(func())) {
	sided(j.cfg.Network, func(n Sided) error {
		name, _ := n.Link()
		conn := s.peer.more[chNIC+name]
		spawn(func() { n.Serve(ctx, conn) })
		return nil
	})
	if s.primary == nil {
		return
	}
	// One that is in step from the first checkpoint on compares from then on.
	wait, cancel := context.WithTimeout(ctx, j.cfg.Lost)
	defer cancel()
	sided(j.cfg.Network, func(n Sided) error {
		if c, ok := n.(interface{ Connected(context.Context) error }); ok {
			return c.Connected(wait)
		}
		return nil
	})
}
