package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// maxState bounds the device state of a checkpoint, in bytes.
const maxState = 256 << 20

// dumper is a dump in progress.
type dumper struct {
	o        options
	r        *qemufile.Reader
	p        *printer
	progress *progress
	verify   *verifier // nil: nobody asked
	scan     vmstate.Scanner
	memory   memory
	sum      summary
	live     *line          // the live section that is being read
	early    map[string]any // the fields of early devices, known since the description
}

// dump prints everything that can be decoded; its error is what could not.
func dump(o options, in io.Reader, stdout, stderr io.Writer) error {
	d := &dumper{
		o: o, progress: newProgress(stderr),
		p: &printer{w: bufio.NewWriter(stdout), json: o.json, fields: o.fields},
	}
	d.memory.dir = o.extract
	if o.extract != "" {
		if err := os.MkdirAll(o.extract, 0o777); err != nil {
			return err
		}
	}
	if o.verify {
		d.verify = new(verifier)
		in = d.verify.tee(in)
	}
	d.r = qemufile.NewReader(in)
	d.scan = vmstate.Scanner{Record: d.record, Live: d.liveBody, Described: d.described}

	var err error
	if o.returnPath {
		err = d.returnPath()
	} else if err = d.scan.Stream(d.r); err == nil && o.colo {
		err = d.checkpoints()
	}
	if err == nil {
		err = d.trailing()
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("offset 0: the input is empty")
	}
	d.progress.done()
	if err == nil && d.verify != nil {
		err = d.verify.end(d.r.Offset())
	}
	err = errors.Join(err, d.memory.close())
	d.sum.Pages, d.sum.Bytes = d.memory.total.Pages, d.r.Offset()
	if d.sum.OK = err == nil; err != nil {
		d.sum.Error = err.Error()
	}
	return errors.Join(err, d.p.end(d.sum, &d.memory))
}

// trailing refuses what follows the end.
func (d *dumper) trailing() error {
	if _, ok := d.r.PeekByte(); ok {
		return fmt.Errorf("offset %d: %w after the end of the stream", d.r.Offset(), vmstate.ErrTrailing)
	}
	return nil
}

// record prints a record. A live section is printed when it is over.
func (d *dumper) record(rec *vmstate.Record) error {
	if d.verify != nil {
		rec.Put(d.verify.w)
	}
	d.progress.at(rec.Offset)
	h := rec.Header
	switch rec.Type {
	case vmstate.FileHeader: // there is only one kind
	case vmstate.SectionStart, vmstate.SectionPart, vmstate.SectionEnd:
		d.sum.Sections++
		d.live = section(rec)
	case vmstate.Footer:
		d.live.Length = rec.Offset + rec.Length - d.live.Offset
		d.p.line(*d.live)
		d.live = nil
	case vmstate.SectionFull:
		d.sum.Sections++
		d.sum.Devices++
		l := section(rec)
		if d.o.fields {
			if s, err := rec.Decode(); err == nil {
				l.Fields = s
			} else {
				l.Fields = map[string]string{"undecoded": fmt.Sprintf("%x", rec.Body)}
			}
		}
		d.p.line(*l)
	case vmstate.CommandRecord:
		if rec.Command.Type == vmstate.CommandPostcopyAdvise {
			d.memory.walker.Format.Postcopy = true
		}
		d.p.line(line{Offset: rec.Offset, Kind: "command", Name: rec.Command.String(), Length: rec.Length, Fields: payload(rec.Command)})
		put := d.verify
		d.verify = nil // Put has written the nested stream too
		for i := range rec.Package {
			if err := d.record(&rec.Package[i]); err != nil {
				return err
			}
		}
		d.verify = put
	case vmstate.Configured:
		c := rec.Configuration
		d.memory.walker.Format.IgnoreShared = slices.Contains(c.Capabilities, "x-ignore-shared")
		fields := map[string]any{"machine": c.Machine}
		if c.TargetPageBits != 0 {
			fields["target-page-bits"] = c.TargetPageBits
		}
		if c.Capabilities != nil {
			fields["capabilities"] = c.Capabilities
		}
		if c.UUID != nil {
			fields["uuid"] = fmt.Sprintf("%x", *c.UUID)
		}
		d.p.line(line{Offset: rec.Offset, Kind: "configuration", Name: c.Machine, Length: rec.Length, Fields: fields})
		return unreadable(c, rec.Offset)
	default:
		l := line{Offset: rec.Offset, Kind: rec.Type.String(), Name: h.Name, Length: rec.Length}
		if rec.Type == vmstate.Description && len(d.early) > 0 {
			l.Fields = map[string]any{"early": d.early}
			d.early = nil
		}
		d.p.line(l)
	}
	return nil
}

// unreadable says why the memory of a stream cannot be read.
func unreadable(c vmstate.Configuration, offset int64) error {
	switch {
	case c.TargetPageBits != 0 && 1<<c.TargetPageBits != ram.PageSize:
		return fmt.Errorf("offset %d: the target's pages have %d bits, only 12 are known", offset, c.TargetPageBits)
	case slices.Contains(c.Capabilities, "mapped-ram"):
		return fmt.Errorf("offset %d: with mapped-ram the memory is no stream", offset)
	}
	return nil
}

// described keeps the fields of an early device, which was printed before it was
// known what they are, for the description's line.
func (d *dumper) described(rec *vmstate.Record) {
	if s, err := rec.Decode(); err == nil && d.o.fields {
		if d.early == nil {
			d.early = make(map[string]any)
		}
		d.early[fmt.Sprintf("%s/%d", rec.Header.Name, rec.Header.Instance)] = s
	}
}

func section(rec *vmstate.Record) *line {
	h, footer := rec.Header, !rec.NoFooter
	return &line{Offset: rec.Offset, Kind: rec.Type.String(), ID: &h.ID, Name: h.Name, Instance: &h.Instance, Version: &h.Version, Length: rec.Length, Footer: &footer}
}

// payload is what a command says.
func payload(c vmstate.Command) any {
	if v, err := c.AsPing(); err == nil {
		return map[string]any{"value": v}
	}
	if a, err := c.AsPostcopyAdvise(); err == nil && a.RAM {
		return map[string]any{"page-sizes": a.PageSizes, "target-page-size": a.TargetPageSize}
	}
	if r, err := c.AsRAMDiscard(); err == nil {
		ranges := make([]map[string]uint64, len(r.Ranges))
		for i, x := range r.Ranges {
			ranges[i] = map[string]uint64{"start": x.Start, "length": x.Length}
		}
		return map[string]any{"block": r.Block, "ranges": ranges}
	}
	if n, err := c.AsPackaged(); err == nil {
		return map[string]any{"nested": n}
	}
	if b, err := c.AsRecvBitmap(); err == nil {
		return map[string]any{"block": b}
	}
	return nil
}

// liveBody reads the body of a live section. Only memory is known; what else
// there is (dirty bitmaps of disks, say) passes by.
func (d *dumper) liveBody(h vmstate.Header, r *qemufile.Reader) error {
	var err error
	if h.Name == ram.SectionName {
		d.live.Fields, err = d.memory.section(r, func(rec *ram.Record) {
			if d.verify != nil {
				rec.Put(d.verify.w, d.memory.walker.Format)
			}
			d.progress.at(rec.Stream)
		})
	} else {
		d.live.Opaque = true
		err = d.scan.SkipLive(h, r, func(p []byte) {
			if d.verify != nil {
				d.verify.w.Write(p)
			}
			d.progress.at(r.Offset())
		})
	}
	if err != nil {
		d.live.Length = r.Offset() - d.live.Offset
		d.p.line(*d.live)
	}
	return err
}

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
	if size > maxState {
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
