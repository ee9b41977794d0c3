package main

import (
	"net"
	"strconv"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
)

func jsonInt(n int) string { return strconv.Itoa(n) }

// stop freezes a QEMU: it neither answers nor closes anything.
func stop(v *qemutest.VM) { v.Process().Signal(syscall.SIGSTOP) }

// stranger connects to a socket and says nothing.
func stranger(t *testing.T, path string) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
}
