package quickack_test

import (
	"fmt"
	"net"

	"github.com/gocolo/lockstep/colo/quickack"
)

// The connection of a QEMU is wrapped before anything else is.
func ExampleConn() {
	a, b := net.Pipe()
	defer b.Close()
	conn := quickack.Conn(a) // no TCP connection is left as it is
	defer conn.Close()
	fmt.Println(conn == a)
	// Output: true
}
