//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package mapping

import "syscall"

func mmap(size int) ([]byte, error) {
	return syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
}

func munmap(p []byte) error { return syscall.Munmap(p) }
