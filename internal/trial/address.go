package trial

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/gocolo/lockstep/event/qmp"
)

// MonitorOf returns the address of a side's monitor: for the primary, or host a, that of
// -qmp, for the other side the one beside it. With port 0 each gets any free port.
func MonitorOf(addr, side string) (string, error) {
	if addr == "" || isFirst(side) {
		return addr, nil
	}
	if !strings.ContainsAny(addr, ":/") {
		return "", fmt.Errorf("%q is neither unix:PATH nor HOST:PORT", addr)
	}
	network, address := qmp.Split(addr)
	if network == "unix" {
		if address == "" {
			return "", fmt.Errorf("%q has no path", addr)
		}
		return "unix:" + address + "." + side, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	port, err = nextPort(port)
	return net.JoinHostPort(host, port), err
}

// PageOf returns the address of a side's page in the same way, from that of -http, which may
// be a port alone.
func PageOf(addr, side string) (string, error) {
	if addr == "" {
		return "", nil
	}
	at := strings.LastIndexByte(addr, ':') + 1
	port, err := nextPort(addr[at:])
	if err != nil || isFirst(side) {
		return addr, err
	}
	return addr[:at] + port, nil
}

// Sides returns the names of the two sides, that which has the guest at first before the other.
func (c *Config) Sides() [2]string {
	if c.Failovers+c.Switchovers > 0 {
		return [2]string{hostA, hostB}
	}
	return [2]string{Primary, Secondary}
}

// handles sets the addresses of a side's monitor and page. The options were checked.
func (s *SideConfig) handles(o *Config) {
	s.QMP, _ = MonitorOf(o.QMP, s.Side)
	s.HTTP, _ = PageOf(o.HTTP, s.Side)
	s.HTTPControl = o.HTTPControl
}

// isFirst reports whether a side is the one that has the guest at first.
func isFirst(side string) bool { return side == Primary || side == hostA }

// nextPort returns the port after one, 0 after 0.
func nextPort(port string) (string, error) {
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q is no port", port)
	case n == 65535:
		return "", fmt.Errorf("port %s has no next one", port)
	case n > 0:
		n++
	}
	return strconv.FormatUint(n, 10), nil
}
