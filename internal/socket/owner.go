package socket

import (
	"net"
	"os"
	"strings"
)

// ListenPrivate is Listen, but that to a Unix socket only the user of this process may connect,
// whatever the umask.
func ListenPrivate(network, address string) (net.Listener, error) {
	if network != "unix" {
		return Listen(network, address)
	}
	l, err := listen(net.ListenConfig{Control: ownersOnly}, network, address)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(address, 0o600); err != nil && !strings.HasPrefix(address, "@") { // @ begins a name that is no path
		l.Close()
		return nil, err
	}
	return l, nil
}
