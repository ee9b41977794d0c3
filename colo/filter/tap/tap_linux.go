package tap

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/packet"
)

// A Device is a TAP interface of the network namespace in which it was opened.
// Unless it is persistent, the interface lives as long as the Device.
//
// ReadPacket and ReadInto belong to one goroutine; writes may come from several. Close may
// be called from any goroutine and ends reads and writes that wait, with
// os.ErrClosed.
type Device struct {
	name    string
	vnet    int
	file    *os.File
	raw     syscall.RawConn
	closing atomic.Bool

	// Reading takes all that is there, up to a batch, in one turn with the
	// poller.
	buf      []byte
	ends     [batch]int // of the frames in buf
	n, next  int        // frames in buf, and the next to be returned
	rerr     error
	readable func(fd uintptr) bool // fill, made once

	into    []byte // where ReadInto reads, and how much it has read
	got     int
	readOne func(fd uintptr) bool // fillInto, made once

	wmu      sync.Mutex // a batch of one; guards what follows
	out      []byte
	werr     error
	writable func(fd uintptr) bool
	scratch  []byte
	lost     uint64
}

const (
	clone   = "/dev/net/tun" // the device that makes interfaces
	batch   = 64
	bufSize = 4 * filter.MaxFrame
)

// Open makes an interface, or attaches to a persistent one. It needs
// CAP_NET_ADMIN. The interface is down, and has no address, until somebody
// changes that. Errors are an [*Error] with the kernel's error number
// (Documentation/networking/tuntap.rst).
func Open(cfg Config) (_ *Device, err error) {
	d := &Device{name: cfg.Name, vnet: cfg.VNetHdrLen}
	defer func() {
		if err != nil {
			err = &Error{Op: "open", Name: d.name, Err: err}
		}
	}()
	switch d.vnet {
	case 0, packet.VNetLen, packet.VNetMergeLen, packet.VNetHashLen, packet.VNetTunnelLen:
	default:
		return nil, fmt.Errorf("a virtio-net header of %d bytes: %w", d.vnet, unix.EINVAL)
	}
	if d.vnet == 0 && cfg.Offload != 0 {
		return nil, fmt.Errorf("offloads without virtio-net headers: %w", unix.EINVAL)
	}
	if d.name == "" {
		d.name = "tap%d"
	}
	req, err := unix.NewIfreq(d.name)
	if err != nil {
		return nil, fmt.Errorf("a name of %d bytes: %w", len(d.name), err)
	}
	fd, err := unix.Open(clone, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: clone, Err: err}
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if d.vnet > 0 {
		flags |= unix.IFF_VNET_HDR
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, os.NewSyscallError("TUNSETIFF", err)
	}
	d.name = req.Name()
	if d.vnet > 0 {
		if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, d.vnet); err != nil {
			return nil, os.NewSyscallError("TUNSETVNETHDRSZ", err)
		}
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, int(cfg.Offload)); err != nil {
		return nil, os.NewSyscallError("TUNSETOFFLOAD", err)
	}
	d.file = os.NewFile(uintptr(fd), clone)
	if d.raw, err = d.file.SyscallConn(); err != nil {
		return nil, err
	}
	d.buf = make([]byte, bufSize)
	d.readable, d.readOne, d.writable = d.fill, d.fillInto, d.drain
	return d, nil
}

// Name returns the name of the interface.
func (d *Device) Name() string { return d.name }

// VNetHdrLen returns the length, in bytes, of the virtio-net header that each
// frame begins with.
func (d *Device) VNetHdrLen() int { return d.vnet }

// SetOffload changes what the kernel may leave to the reader: a guest that is reset,
// and negotiates anew, may not take over what the one before it did. Frames that were
// sent before may still be read. What the kernel does not know is an [*Error] with
// EINVAL, and so is anything for an interface without virtio-net headers.
func (d *Device) SetOffload(o Offload) error {
	if d.vnet == 0 && o != 0 {
		return &Error{Op: "offload", Name: d.name, Err: unix.EINVAL}
	}
	var err error
	if cerr := d.raw.Control(func(fd uintptr) { err = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, int(o)) }); cerr != nil {
		err = d.closed(cerr)
	}
	if err != nil {
		return &Error{Op: "offload", Name: d.name, Err: err}
	}
	return nil
}

// ReadPacket returns the next frame that the kernel sends through the
// interface, and waits for one. The slice is valid until the next call. Errors
// stick; an interface that was deleted is EBADFD.
func (d *Device) ReadPacket() ([]byte, error) {
	for d.next == d.n {
		if d.rerr == nil {
			d.n, d.next = 0, 0
			if err := d.raw.Read(d.readable); err != nil {
				d.rerr = err
			}
		}
		if d.n == 0 && d.rerr != nil {
			return nil, &Error{Op: "read", Name: d.name, Err: d.closed(d.rerr)}
		}
	}
	from := 0
	if d.next > 0 {
		from = d.ends[d.next-1]
	}
	to := d.ends[d.next]
	d.next++
	return d.buf[from:to:to], nil
}

// ReadInto does what ReadPacket does, but writes the frame into p and returns its length, for a caller
// that keeps the frame: one that ReadPacket returns would have to be copied. A frame that is longer
// than p is cut, as the kernel does; filter.MaxFrame bytes are enough for any.
func (d *Device) ReadInto(p []byte) (int, error) {
	if d.next < d.n || len(p) == 0 { // the kernel reads nothing into no memory
		q, err := d.ReadPacket()
		return copy(p, q), err
	}
	for d.rerr == nil {
		d.into, d.got = p, 0
		err := d.raw.Read(d.readOne)
		if d.into = nil; err != nil {
			d.rerr = err
		}
		if d.got > 0 {
			return d.got, nil
		}
	}
	return 0, &Error{Op: "read", Name: d.name, Err: d.closed(d.rerr)}
}

// fillInto reads one frame. It returns false if there is none.
func (d *Device) fillInto(fd uintptr) bool {
	for {
		n, err := unix.Read(int(fd), d.into)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN, err == nil && n == 0:
			return false
		}
		d.got, d.rerr = max(n, 0), err
		return true
	}
}

// fill reads what is there. It returns false if that is nothing.
func (d *Device) fill(fd uintptr) bool {
	at := 0
	for d.n < batch && len(d.buf)-at >= filter.MaxFrame {
		n, err := unix.Read(int(fd), d.buf[at:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return d.n > 0
		case err != nil:
			d.rerr = err
			return true
		case n == 0:
			return d.n > 0
		}
		at += n
		d.ends[d.n] = at
		d.n++
	}
	return true
}

// WritePacket gives the kernel one frame, as if it came in by the interface. The
// frame begins with a virtio-net header of VNetHdrLen bytes. A frame for an
// interface that is down is lost, as with a cable that is not plugged in, and
// counted; so is one that the kernel takes for malformed. Other errors are an
// [*Error].
func (d *Device) WritePacket(p []byte) error {
	d.wmu.Lock()
	defer d.wmu.Unlock()
	return d.write(p)
}

// WriteVNetPacket is WritePacket for a frame that begins with a virtio-net header of
// hdrLen bytes. If the interface has another length, it gets a header of that length,
// which says nothing if the frame has none. If the interface has none, a partial checksum
// is completed; a frame that is to be cut cannot be taken then, and is counted as lost.
func (d *Device) WriteVNetPacket(p []byte, hdrLen int) error {
	d.wmu.Lock()
	defer d.wmu.Unlock()
	if hdrLen < 0 || hdrLen > len(p) {
		d.lost++
		return nil
	}
	if hdrLen == d.vnet {
		return d.write(p)
	}
	d.scratch = append(d.scratch[:0], make([]byte, d.vnet)...)
	copy(d.scratch, p[:hdrLen])
	d.scratch = append(d.scratch, p[hdrLen:]...)
	if h := packet.VNetOf(p, hdrLen); d.vnet == 0 && h != nil {
		if h.GSOType() != packet.GSONone || !h.Complete(d.scratch) {
			d.lost++
			return nil
		}
	}
	return d.write(d.scratch)
}

func (d *Device) write(p []byte) error {
	d.out, d.werr = p, nil
	err := d.raw.Write(d.writable)
	d.out = nil
	if err == nil {
		err = d.werr
	}
	switch err {
	case nil:
		return nil
	case unix.EIO, unix.EINVAL: // down; malformed
		d.lost++
		return nil
	}
	return &Error{Op: "write", Name: d.name, Err: d.closed(err)}
}

func (d *Device) drain(fd uintptr) bool {
	for {
		_, err := unix.Write(int(fd), d.out)
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		d.werr = err
		return true
	}
}

// Lost returns how many frames were not taken.
func (d *Device) Lost() uint64 {
	d.wmu.Lock()
	defer d.wmu.Unlock()
	return d.lost
}

// Close ends the device, and with it the interface, unless that is persistent.
func (d *Device) Close() error {
	d.closing.Store(true)
	return d.file.Close()
}

// closed returns os.ErrClosed once the device has been closed, and err before that.
func (d *Device) closed(err error) error {
	if d.closing.Load() {
		return os.ErrClosed
	}
	return err
}
