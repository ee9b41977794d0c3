package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// What a stream may make the dump keep, in bytes.
const (
	// maxState is device state that is kept until the description comes; a
	// larger one passes by.
	maxState = 24 << 20
	// maxCheckpoint is the device state of a checkpoint.
	maxCheckpoint = 48 << 20
	// maxShown is a value of bytes that is shown in full.
	maxShown = 64 << 10
)

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
	live     *line // the live section that is being read
	early    map[string]any
	devices  []string // names
	guessed  int      // devices whose length only their looks tell
	passed   bool     // device sections passed by, and have been written again
	text     []byte   // the description
	xml      string   // libvirt's
	notes    []string // what is worth knowing and no error
	misfits  []string
	shared   bool // blocks may be left out
}

// dump prints everything that can be decoded; its error is what could not.
func dump(o options, in io.Reader, stdout, stderr io.Writer) error {
	d := &dumper{
		o: o, progress: newProgress(stderr),
		p: &printer{w: bufio.NewWriter(stdout), json: o.json, fields: o.fields, silent: o.show != ""},
	}
	d.memory.dir = o.extract
	if o.extract != "" {
		if err := os.MkdirAll(o.extract, 0o777); err != nil {
			return err
		}
	}
	err := d.prepare(in)
	if err == nil {
		err = d.stream()
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("offset 0: the input is empty")
	}
	d.progress.done()
	if err == nil && d.verify != nil {
		err = d.verify.end(d.r.Offset())
	}
	if err == nil && !o.returnPath {
		err = d.incomplete()
	}
	err = errors.Join(err, d.memory.close())
	d.sum.Pages = d.memory.total.Pages
	if d.r != nil {
		d.sum.Bytes = d.r.Offset()
	}
	if d.sum.OK = err == nil; err != nil {
		d.sum.Error = err.Error()
	}
	d.sum.Misfits, d.sum.Notes = d.misfits, d.notes
	for _, text := range append(d.misfits, d.notes...) {
		fmt.Fprintln(stderr, "streamdump: note:", printable(text))
	}
	if o.show != "" {
		return errors.Join(err, d.show(stdout))
	}
	return errors.Join(err, d.p.end(d.sum, &d.memory))
}

// prepare opens what the options name.
func (d *dumper) prepare(in io.Reader) error {
	x, err := open(in)
	if err != nil {
		return err
	}
	if x.note != "" {
		d.notes = append(d.notes, x.note)
	}
	d.source(x.r)
	d.scan = vmstate.Scanner{
		Record: d.record, Live: d.liveBody, Described: d.described, Large: d.large,
		Padding: true, MaxState: maxState, MaxSkip: 1 << 62, MaxDescription: maxDescription,
	}
	k := &d.memory.walker
	k.Detect = true
	if k.PageSize = d.o.pageSize; k.PageSize == 0 {
		k.PageSize = int(x.pageSize)
	}
	if d.o.describe != "" {
		if d.scan.Devices, err = describedBy(d.o.describe); err != nil {
			return err
		}
	}
	for _, name := range d.o.channels {
		if err := d.memory.channels.add(name); err != nil {
			return err
		}
	}
	return nil
}

// source makes in what is read next.
func (d *dumper) source(in io.Reader) {
	if d.o.verify {
		d.verify = new(verifier)
		in = d.verify.tee(in)
	}
	d.r = qemufile.NewReader(in)
}

// describedBy takes the description of another stream, or one that stands alone.
func describedBy(name string) (*vmstate.VMDesc, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	text := description(f, st.Size())
	if text == nil && st.Size() <= maxDescription {
		head := make([]byte, 1)
		if _, err := f.ReadAt(head, 0); err == nil && head[0] == '{' {
			if text, err = io.ReadAll(f); err != nil {
				return nil, err
			}
		}
	}
	if text == nil {
		return nil, fmt.Errorf("%s: no description at its end", name)
	}
	desc, err := vmstate.ParseVMDesc(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return desc, nil
}

// stream reads all of the input.
func (d *dumper) stream() error {
	if d.o.returnPath {
		if err := d.returnPath(); err != nil {
			return err
		}
		return d.trailing()
	}
	image, err := readLibvirt(d.r)
	if err != nil {
		return err
	}
	if image != nil {
		if err := d.libvirt(image); err != nil {
			return err
		}
	}
	err = d.scan.Stream(d.r)
	d.endLive()
	if err == nil && d.o.colo {
		err = d.checkpoints()
		d.endLive()
	}
	if err != nil {
		return err
	}
	if err := d.memory.channels.drain(true, d.memory.takeElsewhere); err != nil {
		return err
	}
	return d.trailing()
}

// libvirt shows the header of an image and goes on with the stream in it.
func (d *dumper) libvirt(l *libvirt) error {
	d.xml = l.XML
	d.p.line(line{Offset: 0, Kind: "libvirt", Name: l.Kind, Length: l.length, Fields: l})
	if !l.compressed {
		if d.verify != nil {
			d.verify.pass(d.r.Offset())
		}
		return nil
	}
	in, err := l.open(d.r)
	if err != nil {
		return err
	}
	d.notes = append(d.notes, fmt.Sprintf("the stream in the image is %s; offsets are those of what is in it", l.Kind))
	d.source(in)
	return nil
}

// trailing refuses what follows the end, but for zeros: a writer in blocks fills
// the last one.
func (d *dumper) trailing() error {
	end := d.r.Offset()
	for {
		if _, ok := d.r.PeekByte(); !ok {
			break
		}
		p := d.r.Next(d.r.Buffered())
		if len(bytes.TrimLeft(p, "\x00")) > 0 {
			d.sum.Bytes = end
			return fmt.Errorf("offset %d: %w after the end of the stream", end, vmstate.ErrTrailing)
		}
	}
	if n := d.r.Offset() - end; n > 0 {
		d.notes = append(d.notes, fmt.Sprintf("%d zeros follow the end of the stream", n))
		if d.verify != nil {
			d.verify.pass(d.r.Offset())
		}
	}
	return nil
}

// incomplete says what a stream that was read to its end does not have.
func (d *dumper) incomplete() error {
	m := &d.memory
	if d.guessed > 0 {
		d.notes = append(d.notes, fmt.Sprintf("the stream has neither footers nor a description for %d devices: where they end is guessed, and nothing tells their fields (-describe OTHER takes another stream's description)", d.guessed))
	}
	if m.unknown {
		d.notes = append(d.notes, "the memory is too large to tell whether all of it came")
	}
	if m.channels.devices > 0 {
		d.notes = append(d.notes, fmt.Sprintf("%d bytes of device state came over the channels, which nothing here reads", m.channels.devices))
	}
	var missing, all int64
	for _, name := range m.list {
		n, of := m.missing(name)
		all += of
		if n > 0 {
			missing += n
		}
	}
	switch {
	case missing == 0:
		return nil
	case d.shared:
		d.notes = append(d.notes, fmt.Sprintf("%d of %d pages did not come: x-ignore-shared leaves out what is shared", missing, all))
		return nil
	}
	for _, name := range d.devices {
		if strings.Contains(name, "virtio-mem") || strings.Contains(name, "virtio-balloon") {
			d.notes = append(d.notes, fmt.Sprintf("%d of %d pages did not come: %s may have left them out", missing, all, name))
			return nil
		}
	}
	if len(m.channels.open) > 0 {
		return fmt.Errorf("%d of %d pages did not come, neither in the stream nor over %d channels", missing, all, len(m.channels.open))
	}
	return fmt.Errorf("%d of %d pages did not come: with multifd they are in the channels (-channel FILE)", missing, all)
}

// show prints the one thing that was asked for.
func (d *dumper) show(stdout io.Writer) error {
	if d.o.show == "xml" {
		if d.xml == "" {
			return errors.New("the input is no libvirt image")
		}
		_, err := fmt.Fprintln(stdout, d.xml)
		return err
	}
	if d.text == nil {
		return errors.New("the stream has no description")
	}
	var b bytes.Buffer
	if err := json.Indent(&b, d.text, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := b.WriteTo(stdout)
	return err
}

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
	k := &d.memory.walker
	d.shared = slices.Contains(c.Capabilities, "x-ignore-shared")
	k.Format.IgnoreShared = d.shared
	k.Format.MappedRAM = slices.Contains(c.Capabilities, "mapped-ram")
	fields := map[string]any{"machine": c.Machine}
	if c.TargetPageBits != 0 {
		fields["target-page-bits"] = c.TargetPageBits
		if size := int64(1) << c.TargetPageBits; d.o.pageSize == 0 && validPageSize(size) {
			k.PageSize = int(size)
		}
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
