package protect

import (
	"context"
	"net"
	"net/netip"
	"time"
)

// nextAddress is how long one address of the other host is tried before the next is tried as well.
const nextAddress = 250 * time.Millisecond

// dialTCP connects to the first address that answers of those that a host's name has. Tried one
// after the other, one that is dead would take all of the time that a question may take, and a host
// that lives would not be heard.
func dialTCP(ctx context.Context, address string) (net.Conn, error) {
	d := new(net.Dialer)
	if all := addressesOf(ctx, address); len(all) > 1 {
		return dialAny(ctx, all, func(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
			return d.DialContext(ctx, "tcp", at.String())
		})
	}
	return d.DialContext(ctx, "tcp", address)
}

// addressesOf returns the addresses of a name and port, in the order in which they are best tried.
// It returns none where a dialer says better what is wrong.
func addressesOf(ctx context.Context, address string) (all []netip.AddrPort) {
	host, service, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return nil
	}
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil
	}
	for _, ip := range ips[:min(len(ips), maxAddresses)] {
		all = append(all, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return all
}

// maxAddresses bounds how many addresses of one name are tried.
const maxAddresses = 16

// dialAny tries the addresses, each when the one before has failed, or has not answered for
// nextAddress, and returns the first connection, or the error of the first address. Nothing of it
// goes on when it returns.
func dialAny(ctx context.Context, all []netip.AddrPort, one func(context.Context, netip.AddrPort) (net.Conn, error)) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
		i    int
	}
	ctx, cancel := context.WithCancel(ctx)
	results := make(chan result)
	trying, begun := 0, 0
	begin := func() {
		i := begun
		begun++
		trying++
		go func() {
			conn, err := one(ctx, all[i])
			results <- result{conn, err, i}
		}()
	}
	defer func() {
		cancel()
		for ; trying > 0; trying-- {
			if r := <-results; r.conn != nil {
				r.conn.Close()
			}
		}
	}()
	next := time.NewTimer(nextAddress)
	defer next.Stop()
	var first error
	begin()
	for {
		select {
		case r := <-results:
			trying--
			if r.err == nil {
				return r.conn, nil
			}
			if r.i == 0 || first == nil {
				first = r.err
			}
		case <-next.C:
		}
		switch {
		case begun < len(all) && ctx.Err() == nil:
			begin()
			next.Reset(nextAddress)
		case trying == 0:
			return nil, first
		}
	}
}
