package main

import (
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// checkpoints reads what a COLO primary sends after its initial migration.
func (d *dumper) checkpoints() error {
	names := [...]string{"checkpoint-ready", "checkpoint-request", "checkpoint-reply", "vmstate-send", "vmstate-size", "vmstate-received", "vmstate-loaded"}
	half := false // a checkpoint's memory has come and its devices have not
	for {
		if _, ok := d.r.PeekByte(); !ok && !half {
			return nil // the primary is gone; that is how COLO ends
		}
		at := d.r.Offset()
		m := d.r.BE32()
		l := line{Offset: at, Kind: "colo", Length: 4}
		if d.r.Err() == nil && int(m) >= len(names) {
			return fmt.Errorf("offset %d: unknown COLO message %d", at, m)
		}
		var size uint64
		if d.r.Err() == nil {
			l.Name = names[m]
			if l.Name == "vmstate-size" {
				size = d.r.BE64()
				l.Length, l.Fields = 12, map[string]any{"value": size}
			}
		}
		if err := d.r.Err(); err != nil {
			return qemufile.NoEOF(err)
		}
		if d.verify != nil {
			d.verify.w.PutBE32(m)
			if l.Length == 12 {
				d.verify.w.PutBE64(size)
			}
		}
		d.p.line(l)
		switch l.Name {
		case "vmstate-send":
			if err := d.scan.Sections(d.r); err != nil {
				return err
			}
			half = true
		case "vmstate-size":
			if err := d.deviceState(size); err != nil {
				return err
			}
			d.sum.Checkpoints++
			half = false
		case "checkpoint-request":
		default:
			return fmt.Errorf("offset %d: a primary does not send %s", at, l.Name)
		}
	}
}

// deviceState reads the device state of a checkpoint. If it is cut, the devices
// before the cut are printed all the same.
func (d *dumper) deviceState(size uint64) error {
	at := d.r.Offset()
	if size > maxCheckpoint {
		return fmt.Errorf("offset %d: a device state of %d bytes: %w", at, size, qemufile.ErrTooLong)
	}
	var state []byte
	for uint64(len(state)) < size {
		if _, ok := d.r.PeekByte(); !ok {
			d.r.Byte() // fails
			err := qemufile.NoEOF(d.r.Err())
			if d.scan.State(state, at) == nil {
				return fmt.Errorf("offset %d: a device state of %d bytes that ends early", at, size)
			}
			return err
		}
		state = append(state, d.r.Next(int(min(uint64(d.r.Buffered()), size-uint64(len(state)))))...)
	}
	return d.scan.State(state, at)
}

// returnPath reads the messages of a destination.
func (d *dumper) returnPath() error {
	for {
		if _, ok := d.r.PeekByte(); !ok && d.r.Offset() > 0 {
			return nil
		}
		at := d.r.Offset()
		m, err := vmstate.ReadReturn(d.r, 0)
		if err != nil {
			return fmt.Errorf("offset %d: %w", at, err)
		}
		if d.verify != nil {
			vmstate.PutReturn(d.verify.w, m)
		}
		fields := map[string]any{}
		switch m.Type {
		case vmstate.ReturnShut, vmstate.ReturnPong, vmstate.ReturnResumeAck:
			fields["value"] = m.Value
		case vmstate.ReturnRequestBlock, vmstate.ReturnRequestPages:
			fields["start"], fields["length"] = m.Start, m.Length
		case vmstate.ReturnRecvBitmap:
			fields["words"] = len(m.Bitmap)
		}
		if m.Block != "" {
			fields["block"] = m.Block
		}
		d.p.line(line{Offset: at, Kind: "return-path", Name: m.Type.String(), Length: d.r.Offset() - at, Fields: fields})
	}
}
