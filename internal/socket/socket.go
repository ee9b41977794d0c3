// Package socket finds places for listeners. Listen takes the place of a Unix socket that a killed
// process has left: the name of that socket stays, though nobody listens at it, and would keep the
// next process from listening. ListenPrivate lets nobody else connect. Dir and ChooseTCP return places that nobody else has.
package socket

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
)

// Listen is net.Listen, which takes the place of a Unix socket that nobody listens at any more, and
// refuses one without a name.
func Listen(network, address string) (net.Listener, error) {
	return listen(net.ListenConfig{}, network, address)
}

func listen(by net.ListenConfig, network, address string) (net.Listener, error) {
	if err := CheckName(network, address); err != nil {
		return nil, err
	}
	l, err := by.Listen(context.Background(), network, address)
	if network == "unix" && errors.Is(err, syscall.EADDRINUSE) && RemoveDead(address) {
		return by.Listen(context.Background(), network, address)
	}
	return l, err
}

// CheckName returns an error if address is that of a Unix socket and is empty: the kernel would
// choose a name then, which nobody who connects knows.
func CheckName(network, address string) error {
	if network == "unix" && address == "" {
		return &net.OpError{Op: "listen", Net: network, Err: errors.New("the path of the socket is missing")}
	}
	return nil
}

// RemoveDead removes the Unix socket of that path if nobody listens at it, and reports whether the
// path is free now. A file that is no socket, such as an image that was named by mistake,
// stays.
func RemoveDead(path string) bool {
	if st, err := os.Lstat(path); err != nil || st.Mode().Type() != fs.ModeSocket {
		return false
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		c.Close()
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false
	}
	err = os.Remove(path)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}
