package trial

import (
	"fmt"
	"net"
	"strconv"

	"github.com/gocolo/lockstep/event/qmp"
)

// MonitorOf returns where a side's monitor is: the primary's where -qmp says, the
// secondary's beside it.
func MonitorOf(addr, side string) (string, error) {
	if addr == "" || side == Primary {
		return addr, nil
	}
	network, address := qmp.Split(addr)
	if network == "unix" {
		return "unix:" + address + "." + Secondary, nil
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || n == 65535 {
		return "", fmt.Errorf("port %s has no next one", port)
	}
	return net.JoinHostPort(host, strconv.FormatUint(n+1, 10)), nil
}
