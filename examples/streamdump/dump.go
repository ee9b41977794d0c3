package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/gocolo/lockstep/internal/plain"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// Bounds for the memory that a stream can make the program take, in bytes.
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
	devices  []string // names of the devices that were seen
	guessed  int      // devices whose length only their looks tell
	passed   bool     // device sections passed by, and have been written again
	text     []byte   // the stream's description, as JSON
	xml      string   // libvirt's
	notes    []string // what is worth knowing and no error
	misfits  []string
	shared   bool // blocks may be left out
}

// dump prints everything that can be decoded; its error says what could not.
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
	err = inWords(err, d.r)
	d.progress.done()
	if err == nil && d.verify != nil {
		err = d.verify.end(d.r.Offset())
	}
	if err == nil && !o.returnPath {
		err = d.incomplete()
	}
	err = errors.Join(err, d.memory.close())
	d.sum.Pages = d.memory.total.Pages
	if d.r != nil && d.sum.Bytes == 0 {
		d.sum.Bytes = d.r.Offset()
	}
	if d.sum.OK = err == nil; err != nil {
		d.sum.Error = err.Error()
	}
	d.sum.Misfits, d.sum.Notes = d.misfits, d.notes
	for _, text := range append(d.misfits, d.notes...) {
		fmt.Fprintln(stderr, "streamdump: note:", plain.Line(text))
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

// source makes in the input that is read next.
func (d *dumper) source(in io.Reader) {
	if d.o.verify {
		d.verify = new(verifier)
		in = d.verify.tee(in)
	}
	d.r = qemufile.NewReader(in)
}

// describedBy takes the description of another stream, or one that stands alone.
func describedBy(name string) (*vmstate.VMDesc, error) {
	f, err := openFile(name)
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
	if err := d.memory.channels.end(d.memory.takeElsewhere, d.memory.walker.Size()); err != nil {
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

// trailing refuses bytes after the end of the stream, except zeros: a program that writes
// whole blocks fills the last one with them. An input that fails there has not ended: it
// may be a file of gzip whose checksum is wrong.
func (d *dumper) trailing() error {
	end := d.r.Offset()
	d.sum.Bytes = end
	for {
		if _, ok := d.r.PeekByte(); !ok {
			break
		}
		p := d.r.Next(d.r.Buffered())
		if len(bytes.TrimLeft(p, "\x00")) > 0 {
			return fmt.Errorf("offset %d: %w after the end of the stream", end, vmstate.ErrTrailing)
		}
	}
	if err := d.r.Failure(); err != nil {
		return fmt.Errorf("after the end of the stream: %w", err)
	}
	if n := d.r.Offset() - end; n > 0 {
		d.sum.Bytes += n
		d.notes = append(d.notes, fmt.Sprintf("%d zeros follow the end of the stream", n))
		if d.verify != nil {
			d.verify.pass(d.r.Offset())
		}
	}
	return nil
}

// incomplete returns an error that says what is missing in a stream that was read to its end.
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
	return fmt.Errorf("%d of %d pages did not come: with multifd or postcopy-preempt they are in the channels (-channel FILE)", missing, all)
}

// show prints the one thing that -d asks for.
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
