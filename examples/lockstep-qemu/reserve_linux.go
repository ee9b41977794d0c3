package main

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// allocate makes a file whose space is surely there.
func allocate(name string, bytes uint64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(bytes)); err != nil {
		os.Remove(name)
		return err
	}
	return nil
}

// availableMemory returns how much memory processes can still get, in bytes.
func availableMemory() (uint64, bool) {
	p, _ := os.ReadFile("/proc/meminfo")
	_, rest, found := bytes.Cut(p, []byte("MemAvailable:"))
	var kb uint64
	if _, err := fmt.Sscan(string(rest), &kb); !found || err != nil {
		return 0, false
	}
	return kb << 10, true
}
