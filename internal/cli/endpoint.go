package cli

import (
	"fmt"
	"net"
	"strings"
)

// CheckEndpoint returns an error unless s names a member of an etcd cluster: HOST:PORT, with http:// or https:// in
// front or not.
func CheckEndpoint(s string) error {
	at := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(s, "http://"), "https://"), "/")
	host, port, err := net.SplitHostPort(at)
	if err != nil || host == "" || port == "" || strings.Contains(at, "/") {
		return fmt.Errorf("%q is not the HOST:PORT of a member", s)
	}
	return nil
}
