package main

import (
	"flag"
	"net"
	"strconv"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/signals"
)

func jsonInt(n int) string { return strconv.Itoa(n) }

// stop freezes a QEMU: it neither answers nor closes anything.
func stop(v *qemutest.VM) { v.Process().Signal(signals.Stop) }

// stranger connects to a socket, says something, and no more.
func stranger(t *testing.T, path string, says []byte) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.Write(says)
}

// needsQEMU skips a test where no QEMU can be run, and with -short: that starts none.
func needsQEMU(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("-short")
	}
	qemutest.KVM(t)
}

var long = flag.Bool("long", false, "run all cases of the long tests")

// shorten skips all but every n-th case, without -long.
func shorten(t *testing.T, i, n int) {
	t.Helper()
	if !*long && i%n != 0 {
		t.Skip("only with -long")
	}
}
