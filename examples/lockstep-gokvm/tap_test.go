package main

import (
	"net"
	"strings"
	"testing"
)

// A mistyped name must not end in an interface that the kernel makes on the spot, with
// a guest that hears nobody.
func TestATAPInterfaceThatIsNotThereIsAnErrorAndNotMade(t *testing.T) {
	const name = "lockstep-none"
	for name, want := range map[string]string{name: "there is no interface", loopback(): "is no TAP interface"} {
		c, err := openTAP(options{tap: name})
		if err == nil {
			c.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	if _, err := net.InterfaceByName(name); err == nil {
		t.Error("the interface is there now")
	}
}

// loopback returns the name of this host's loopback interface.
func loopback() string {
	list, _ := net.Interfaces()
	for _, i := range list {
		if i.Flags&net.FlagLoopback != 0 {
			return i.Name
		}
	}
	return "lo"
}
