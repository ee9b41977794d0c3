package quickack

import (
	"net"
	"syscall"
)

// tcp is a connection that acknowledges what it has read at once.
type tcp struct {
	*net.TCPConn
	raw syscall.RawConn
	arm func(fd uintptr) // kept, so that a read allocates nothing
}

func wrap(t *net.TCPConn) net.Conn {
	raw, err := t.SyscallConn()
	if err != nil {
		return t
	}
	c := &tcp{TCPConn: t, raw: raw}
	// tcp(7): the flag is not permanent, the protocol clears it as it likes;
	// setting it sends an acknowledgement that is due. A failure changes
	// nothing but the time that things take.
	c.arm = func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1) }
	_ = raw.Control(c.arm)
	return c
}

// Read acknowledges what it has read.
func (c *tcp) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if n > 0 {
		_ = c.raw.Control(c.arm)
	}
	return n, err
}

// WriteBuffers makes a vectored write, as qemufile.BuffersWriter has it.
func (c *tcp) WriteBuffers(b *net.Buffers) (int64, error) { return b.WriteTo(c.TCPConn) }
