package filter

import (
	"encoding/binary"
	"io"
	"time"
)

// A Dump is a [Filter] that writes packets to a pcap file, without their
// virtio-net headers, and lets them pass.
type Dump struct {
	w    io.Writer
	now  func() time.Time
	snap int
	buf  []byte
	err  error
}

// Fields of the pcap file header
// (draft-ietf-opsawg-pcap section 4).
const (
	pcapMagic    = 0xa1b23c4d // time stamps in nanoseconds
	pcapVersion  = 2<<16 | 4
	pcapEthernet = 1
)

// NewDump writes the head of the file and returns a Dump. Of each packet at
// most snap bytes are written; zero is all of them. now is the clock.
func NewDump(w io.Writer, snap int, now func() time.Time) (*Dump, error) {
	if snap <= 0 || snap > MaxFrame {
		snap = MaxFrame
	}
	d := &Dump{w: w, now: now, snap: snap}
	for _, v := range [...]uint32{pcapMagic, pcapVersion, 0, 0, uint32(snap), pcapEthernet} {
		d.buf = binary.BigEndian.AppendUint32(d.buf, v)
	}
	_, d.err = w.Write(d.buf)
	return d, d.err
}

// Process implements [Filter]. After a failed write it does nothing but let
// packets pass.
func (d *Dump) Process(_ Place, _ Direction, f Frame) bool {
	if d.err != nil || f.VNetHdr < 0 || f.VNetHdr > len(f.Data) {
		return true
	}
	p := f.Data[f.VNetHdr:]
	t := d.now()
	b := binary.BigEndian.AppendUint32(d.buf[:0], uint32(t.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
	n := min(len(p), d.snap)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
	d.buf = append(b, p[:n]...)
	_, d.err = d.w.Write(d.buf)
	return true
}

// Failover keeps the Dump in the chain after a failover. It returns nil.
func (d *Dump) Failover() error { return nil }

// Err returns the error of the write that failed, nil if none has. It is called
// from the goroutine that runs the chain, or after it.
func (d *Dump) Err() error { return d.err }
