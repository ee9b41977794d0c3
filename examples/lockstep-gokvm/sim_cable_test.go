package main

import (
	"bytes"
	"os"
	"sync"
)

// A simCable is a cable of a process, as long as it is open.
type simCable struct {
	*process
	once   sync.Once
	closed chan struct{}
}

func (c *simCable) ReadPacket() ([]byte, error) {
	<-c.closed
	return nil, os.ErrClosed
}

func (c *simCable) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (p *process) VNetHdrLen() int { return p.vnet }

// WritePacket carries a frame of the guest to the client of the world. One that the hypervisor
// sends for the guest is not counted as said by it.
func (p *process) WritePacket(b []byte) error {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	b = b[p.vnet:]
	switch {
	case p.dead:
		return os.ErrClosed
	case bytes.HasPrefix(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}):
		p.w.announced[p.host]++
	default:
		p.w.left[p.host]++
		p.w.oracle.Frame(b)
	}
	return nil
}
