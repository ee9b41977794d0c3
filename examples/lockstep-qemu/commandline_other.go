//go:build !linux

package main

import (
	"errors"
	"net"
)

// findQEMU knows nothing here.
func findQEMU(net.Conn, string, int) (running, error) {
	return running{}, errors.New("no other process's is known on this system")
}
