package main

import (
	"strconv"
	"syscall"

	"github.com/gocolo/lockstep/internal/qemutest"
)

func jsonInt(n int) string { return strconv.Itoa(n) }

// stop freezes a QEMU: it neither answers nor closes anything.
func stop(v *qemutest.VM) { v.Process().Signal(syscall.SIGSTOP) }
