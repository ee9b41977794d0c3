//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package mapping

func mmap(size int) ([]byte, error) { return make([]byte, size), nil }

func munmap([]byte) error { return nil }
