package main

import (
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
