package socket

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
)

// given are the addresses that this process has been given.
var given sync.Map

// ChooseTCP returns n addresses of this host at which nobody listens, for listeners of a program or
// a test. On Linux they are of a loopback host that only this process uses, so that nobody else
// takes such an address before the listener does, nor while a process that listened there is dead.
// Elsewhere they are of 127.0.0.1, where a port that was free a moment ago may be taken.
func ChooseTCP(n int) (list []string, err error) {
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

// FreeTCP is ChooseTCP for a test, which fails where there are none.
func FreeTCP(t test, n int) []string {
	t.Helper()
	list, err := ChooseTCP(n)
	if err != nil {
		t.Fatal(err)
	}
	return list
}
