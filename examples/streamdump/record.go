package main

import (
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// put writes a record again.
func (d *dumper) put(rec *vmstate.Record) {
	if d.verify != nil && (!d.passed || rec.Type == vmstate.Description) {
		rec.Put(d.verify.w)
	}
}

// large writes device sections again that are not kept.
func (d *dumper) large(p []byte) {
	d.passed = true
	if d.verify != nil {
		d.verify.w.Write(p)
		d.verify.w.Flush()
	}
	d.progress.at(d.r.Offset())
}

// endLive prints a live section that no footer ends.
func (d *dumper) endLive() {
	if d.live == nil {
		return
	}
	if d.live.Length == 0 {
		d.live.Length = d.r.Offset() - d.live.Offset
	}
	none := false
	d.live.Footer = &none
	d.p.line(*d.live)
	d.live = nil
}

// record prints a record. A live section is printed when it is over.
func (d *dumper) record(rec *vmstate.Record) error {
	d.put(rec)
	d.progress.at(rec.Offset)
	h := rec.Header
	if d.live != nil && rec.Type != vmstate.Footer {
		d.live.Length = rec.Offset - d.live.Offset
		d.endLive()
	}
	switch rec.Type {
	case vmstate.FileHeader: // there is only one kind
	case vmstate.SectionStart, vmstate.SectionPart, vmstate.SectionEnd:
		d.sum.Sections++
		d.live = section(rec)
		d.live.Length = 0
	case vmstate.Footer:
		d.live.Length = rec.Offset + rec.Length - d.live.Offset
		d.p.line(*d.live)
		d.live = nil
	case vmstate.SectionFull:
		d.device(rec)
	case vmstate.CommandRecord:
		d.memory.walker.Learn(rec)
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
		d.configured(rec)
	default:
		l := line{Offset: rec.Offset, Kind: rec.Type.String(), Name: h.Name, Length: rec.Length}
		if rec.Type == vmstate.Description {
			d.text = rec.Body
			if len(d.early) > 0 {
				l.Fields = map[string]any{"early": d.early}
				d.early = nil
			}
		}
		d.p.line(l)
	}
	return nil
}

// device prints the section of one.
func (d *dumper) device(rec *vmstate.Record) {
	d.sum.Sections++
	d.sum.Devices++
	if len(d.devices) < 1<<12 {
		d.devices = append(d.devices, rec.Header.Name)
	}
	l := section(rec)
	if l.Guessed = rec.Guessed; rec.Guessed {
		d.guessed++
	}
	l.Fields, l.Why = d.decode(rec)
	d.p.line(*l)
}

// decode takes a device apart, if that is wanted, and says why it cannot be.
func (d *dumper) decode(rec *vmstate.Record) (fields any, why string) {
	s, err := rec.Decode()
	if err == nil {
		if d.o.fields {
			return abridged(s), ""
		}
		return nil, ""
	}
	if rec.Desc != nil || rec.Misfit != nil {
		why = err.Error()
		if len(d.misfits) < 100 {
			d.misfits = append(d.misfits, why)
		}
	}
	if !d.o.fields {
		return nil, why
	}
	undecoded := map[string]any{"undecoded": fmt.Sprintf("%x", rec.Body[:min(len(rec.Body), maxShown)])}
	if rec.BodyLength > maxShown {
		undecoded["bytes"] = rec.BodyLength
	}
	return undecoded, why
}

// configured prints the configuration and learns from it how memory is sent.
func (d *dumper) configured(rec *vmstate.Record) {
	c := rec.Configuration
	d.memory.walker.Learn(rec)
	d.shared = d.memory.walker.Format.IgnoreShared
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
}

// described keeps the fields of an early device, which was printed before it was
// known what they are, for the description's line.
func (d *dumper) described(rec *vmstate.Record) {
	fields, _ := d.decode(rec)
	if fields == nil {
		return
	}
	if d.early == nil {
		d.early = make(map[string]any)
	}
	d.early[fmt.Sprintf("%s/%d", rec.Header.Name, rec.Header.Instance)] = fields
}

func section(rec *vmstate.Record) *line {
	h, footer := rec.Header, !rec.NoFooter
	return &line{Offset: rec.Offset, Kind: rec.Type.String(), ID: &h.ID, Name: h.Name, Instance: &h.Instance, Version: &h.Version, Length: rec.Length, Footer: &footer}
}

// payload returns the decoded payload of a command.
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
	if h.Name != ram.SectionName {
		d.live.Opaque = true
		return d.scan.SkipLive(h, r, func(p []byte) {
			if d.verify != nil {
				d.verify.w.Write(p)
				d.verify.w.Flush()
			}
			d.progress.at(r.Offset())
		})
	}
	mapped := d.memory.walker.Format.MappedRAM
	c, err := d.memory.section(r, func(rec *ram.Record) {
		switch {
		case d.verify == nil:
		case mapped && rec.Kind != ram.KindEOS:
			// At fixed places of the file, with anything between them.
			d.verify.pass(r.Offset())
		default:
			rec.Put(d.verify.w, d.memory.walker.Format)
		}
		d.progress.at(rec.Stream)
	})
	d.live.Fields = c
	return err
}
