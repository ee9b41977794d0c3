// Package loopback finds addresses of this host for listeners of tests. Nobody else
// takes such an address before the listener does, nor while the process that listened
// there is dead.
package loopback

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
)

// given are the addresses that this process has been given.
var given sync.Map

// Choose returns n addresses of TCP at which nobody listens. On Linux they are of a loopback host
// of this process's own: a port that was free a moment ago may have become that of anybody's
// connection or listener otherwise.
func Choose(n int) (list []string, err error) {
	host := "127.0.0.1"
	if pid := os.Getpid(); runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.%d.%d.%d", 1+pid>>16&0x7f, pid>>8&0xff, pid&0xff)
	}
	for len(list) < n {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			return nil, err
		}
		defer l.Close() // when all of them have been chosen
		if _, taken := given.LoadOrStore(l.Addr().String(), true); !taken {
			list = append(list, l.Addr().String())
		}
	}
	return list, nil
}

// A test is testing.TB, without what a program would link with it.
type test interface {
	Helper()
	Fatal(...any)
}

// Free is Choose for a test, which fails where there are none.
func Free(t test, n int) []string {
	t.Helper()
	list, err := Choose(n)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
