//go:build linux || darwin || freebsd

package main

import "syscall"

// freeIn returns how much space a file system has for this process, in bytes.
func freeIn(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return uint64(st.Bavail) * uint64(st.Bsize), nil
}
