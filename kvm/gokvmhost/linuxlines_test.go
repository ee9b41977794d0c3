//go:build linux && amd64

package gokvmhost_test

import (
	"fmt"
	"slices"
	"sync"
)

// lines is a console: whole lines that the guest has written.
type lines struct {
	mu   sync.Mutex
	list []string
	part []byte
	news chan struct{}
}

// Write implements io.Writer.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range p {
		switch c {
		case '\r':
		case '\n':
			l.list = append(l.list, string(l.part))
			l.part = l.part[:0]
		default:
			l.part = append(l.part, c)
		}
	}
	select {
	case l.news <- struct{}{}:
	default:
	}
	return len(p), nil
}

// mark returns how much there is, and cut takes back what came after.
func (l *lines) mark() (n int, part string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.list), string(l.part)
}

func (l *lines) cut(n int, part string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list, l.part = l.list[:n], append(l.part[:0], part...)
}

// last returns the number that the last line of that kind has.
func (l *lines) last(kind string) (n uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range slices.Backward(l.list) {
		if k, err := fmt.Sscanf(s, kind+" %d", &n); k == 1 && err == nil {
			return n
		}
	}
	return 0
}

// has reports whether there is such a line.
func (l *lines) has(line string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Contains(l.list, line)
}
