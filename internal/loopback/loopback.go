// Package loopback gives tests addresses of this host that nobody else takes before whoever is
// told them listens there.
package loopback

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
)

// given are the addresses that this process has been given.
var given sync.Map

// Free returns n addresses of TCP at which nobody listens. On Linux they are of a loopback host
// of this process's own: a port that was free a moment ago may have become that of anybody's
// connection or listener otherwise.
func Free(t testing.TB, n int) (list []string) {
	t.Helper()
	host := "127.0.0.1"
	if pid := os.Getpid(); runtime.GOOS == "linux" {
		host = fmt.Sprintf("127.%d.%d.%d", 1+pid>>16&0x7f, pid>>8&0xff, pid&0xff)
	}
	for len(list) < n {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // when all of them have been chosen
		if _, taken := given.LoadOrStore(l.Addr().String(), true); !taken {
			list = append(list, l.Addr().String())
		}
	}
	return list
}
