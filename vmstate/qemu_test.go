package vmstate_test

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// bodies keeps RAM sections as they come out again, and what memory they make.
type bodies struct {
	walker ram.Walker
	blocks []ram.BlockInfo
	memory map[string][]byte
}

type body []byte

func (b body) Put(w *qemufile.Writer) { w.Write(b) }

func (b *bodies) DecodeLive(h vmstate.Header, r *qemufile.Reader) (vmstate.LiveBody, error) {
	if h.Name != ram.SectionName {
		return nil, vmstate.ErrUnknownSection
	}
	var out bytes.Buffer
	w := qemufile.NewWriter(&out)
	err := b.walker.Walk(r, func(rec *ram.Record) error {
		if rec.Kind == ram.KindBlockList {
			b.blocks, b.memory = rec.Blocks, make(map[string][]byte)
			for _, x := range rec.Blocks {
				b.memory[x.Name] = make([]byte, x.Length)
			}
		}
		if rec.Page() {
			if err := rec.Apply(b.memory[rec.Block][rec.Offset:]); err != nil {
				return err
			}
		}
		rec.Put(w, b.walker.Format)
		return w.Err()
	})
	w.Flush()
	return body(out.Bytes()), err
}

// decodedDevice is a device made of nothing but what a description told of it.
type decodedDevice struct{ vmstate.Struct }

func (d decodedDevice) VMState(f *vmstate.Fields) {
	for _, x := range d.Fields {
		putDecoded(f, x.Name, x.Type, x.Value)
	}
	for _, sub := range d.Subsections {
		f.Subsection(sub.VMSD, sub.Version, true, decodedDevice{sub}.VMState)
	}
}

func putDecoded(f *vmstate.Fields, name, typ string, v any) {
	width, _, _ := strings.Cut(strings.TrimLeft(typ, "u"), " ")
	switch v := v.(type) {
	case vmstate.Struct:
		f.Struct(name, v.VMSD, v.Version, decodedDevice{v}.VMState)
	case []any:
		if typ == "qtailq" || typ == "qlist" {
			vmstate.QTailQ(f, name, "", 1, &v, len(v), func(e *any, f *vmstate.Fields) { decodedDevice{(*e).(vmstate.Struct)}.VMState(f) })
			return
		}
		for _, e := range v {
			putDecoded(f, name, typ, e)
		}
	case []byte:
		f.Info(name, typ, v)
	case bool:
		f.Bool(name, &v)
	case uint64:
		putInteger(f, name, width, v)
	case int64:
		putInteger(f, name, width, uint64(v))
	}
}

func putInteger(f *vmstate.Fields, name, width string, v uint64) {
	switch width {
	case "int8":
		x := uint8(v)
		f.Uint8(name, &x)
	case "int16":
		x := uint16(v)
		f.Uint16(name, &x)
	case "int32":
		x := uint32(v)
		f.Uint32(name, &x)
	default: // timers, bitmaps, doubles
		f.Uint64(name, &v)
	}
}

// stillMemory is the dirty log of a guest that does not run.
type stillMemory struct{}

func (stillMemory) ReadDirty(string, []uint64) error { return nil }

// compose makes a stream of its own from what was decoded: sections get other
// ids, devices are written field by field, and a Saver sends the memory.
func compose(t *testing.T, doc *vmstate.Document, b *bodies) []byte {
	t.Helper()
	var reg vmstate.Registry
	var blocks []ram.Block
	for _, x := range b.blocks {
		blocks = append(blocks, ram.Block{Name: x.Name, Host: b.memory[x.Name], GPA: x.GPA})
	}
	var out bytes.Buffer
	w := qemufile.NewWriter(&out)
	vmstate.PutFileHeader(w)
	for _, rec := range doc.Records {
		switch rec.Type {
		case vmstate.Configured:
			vmstate.PutConfiguration(w, rec.Configuration)
		case vmstate.SectionFull:
			s, err := rec.Decode()
			if err != nil {
				t.Fatal(err)
			}
			e := vmstate.Entry{Name: rec.Header.Name, Instance: rec.Header.Instance, Version: rec.Header.Version, VMSD: s.VMSD}
			if err := reg.Register(e, decodedDevice{s}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if blocks != nil {
		s := ram.NewSaver(blocks, stillMemory{}, ram.SaverConfig{Format: b.walker.Format})
		if err := reg.RegisterLive(vmstate.Entry{Name: ram.SectionName, Version: ram.Version, Priority: 1}, s, nil); err != nil {
			t.Fatal(err)
		}
	}
	w.Fail(reg.SaveSetup(w))
	for done := false; !done && w.Err() == nil; {
		var err error
		done, err = reg.SaveIterate(w)
		w.Fail(err)
	}
	w.Fail(reg.SaveComplete(w))
	w.Fail(reg.SaveDevices(w))
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// wantSameBodies compares the device sections of two streams but for their ids.
func wantSameBodies(t *testing.T, a, b *vmstate.Document) {
	t.Helper()
	full := func(d *vmstate.Document) (list []vmstate.Record) {
		for _, rec := range d.Records {
			if rec.Type == vmstate.SectionFull {
				list = append(list, rec)
			}
		}
		return list
	}
	x, y := full(a), full(b)
	if len(x) != len(y) {
		t.Fatalf("%d devices, and %d", len(x), len(y))
	}
	for i := range x {
		if x[i].Header.Name != y[i].Header.Name || !bytes.Equal(x[i].Body, y[i].Body) {
			t.Errorf("%v: written field by field, it differs", x[i].Header)
		}
	}
}

// machines returns command lines whose guests, where there is one, count.
func machines(t *testing.T) map[string][]string {
	bios := countingBIOS(t)
	list := map[string][]string{
		"none":              {"-accel", "tcg", "-machine", "none"},
		"none with memory":  {"-accel", "tcg", "-machine", "none", "-m", "1"},
		"pc":                {"-accel", "tcg", "-machine", "pc", "-m", "8", "-bios", bios},
		"pc with devices":   {"-accel", "tcg", "-machine", "pc", "-m", "8", "-bios", bios, "-device", "virtio-rng-pci", "-device", "isa-serial", "-device", "e1000", "-device", "piix3-usb-uhci", "-device", "usb-tablet"},
		"pc, old":           {"-accel", "tcg", "-machine", "pc-i440fx-4.2", "-m", "8", "-bios", bios, "-device", "VGA"},
		"q35":               {"-accel", "tcg", "-machine", "q35", "-m", "8", "-bios", bios, "-smp", "2"},
		"q35 with devices":  {"-accel", "tcg", "-machine", "q35", "-m", "8", "-bios", bios, "-device", "ich9-usb-uhci1", "-device", "virtio-net-pci", "-device", "virtio-balloon-pci", "-device", "ich9-intel-hda", "-device", "hda-duplex"},
		"microvm":           {"-accel", "tcg", "-machine", "microvm", "-m", "8", "-bios", bios},
		"microvm, virtio":   {"-accel", "tcg", "-machine", "microvm", "-m", "8", "-bios", bios, "-device", "virtio-rng-device", "-device", "virtio-serial-device"},
		"pc, hardware":      {"-accel", "kvm", "-machine", "pc", "-m", "8", "-bios", bios},
		"q35, hardware":     {"-accel", "kvm", "-machine", "q35", "-m", "8", "-bios", bios, "-device", "virtio-rng-pci"},
		"microvm, hardware": {"-accel", "kvm", "-machine", "microvm", "-m", "8", "-bios", bios},
	}
	require.Outside(t, require.QEMU)
	if err := qemutest.KVMError(); err != nil {
		if require.Wanted(require.KVM) {
			t.Fatal(err)
		}
		for name := range list {
			if strings.HasSuffix(name, "hardware") {
				delete(list, name)
			}
		}
	}
	if testing.Short() {
		for name := range list {
			if name != "none with memory" && name != "pc" {
				delete(list, name)
			}
		}
	}
	return list
}

// What QEMU writes is taken apart and put together again, once byte for byte and
// once as a stream that is composed here, and QEMU's guest runs on from either.
func TestQEMURunsOnFromWhatWePutTogether(t *testing.T) {
	for name, args := range machines(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := startQEMU(t, args...)
			counts := !strings.HasPrefix(name, "none")
			if counts {
				source.waitCounted(0)
			}
			stream := source.migrate()
			b := &bodies{}
			doc, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(stream)), b)
			if err != nil {
				t.Fatal(err)
			}
			for _, rec := range doc.Records {
				if rec.Type == vmstate.SectionFull {
					if _, err := rec.Decode(); err != nil {
						t.Error(err)
					}
				}
			}
			var again bytes.Buffer
			w := qemufile.NewWriter(&again)
			doc.Put(w)
			if err := w.Flush(); err != nil || !bytes.Equal(again.Bytes(), stream) {
				t.Fatalf("put together, it differs: %v", err)
			}
			ours := compose(t, doc, b)
			composed, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(ours)), &bodies{})
			if err != nil {
				t.Fatal(err)
			}
			wantSameBodies(t, doc, composed)
			for how, stream := range map[string][]byte{"again": again.Bytes(), "composed": ours} {
				target := resume(t, stream, nil, args...)
				if counts {
					target.wantRunsOn(counted(t, b))
				}
				t.Logf("%s: %d bytes are loaded", how, len(stream))
			}
		})
	}
}

// counted is how far the guest had counted in the memory of a stream.
func counted(t *testing.T, b *bodies) uint32 {
	t.Helper()
	for name, mem := range b.memory {
		if name == "pc.ram" || name == "microvm.ram" {
			if n := binary.LittleEndian.Uint32(mem[counterAt:]); n > 0 {
				return n
			}
		}
	}
	t.Fatal("the memory of the stream has no count")
	return 0
}

// Capabilities change what a stream has.
func TestQEMUsCapabilitiesComeBackByteForByte(t *testing.T) {
	args := []string{"-accel", "tcg", "-machine", "pc", "-m", "8", "-bios", countingBIOS(t)}
	for capability, format := range map[string]ram.Format{
		"xbzrle": {}, "compress": {}, "zero-blocks": {}, "background-snapshot": {}, "x-ignore-shared": {IgnoreShared: true},
	} {
		if testing.Short() && capability != "x-ignore-shared" {
			continue
		}
		t.Run(capability, func(t *testing.T) {
			if capability == "background-snapshot" {
				lazy, err := ram.NewLazy(nil)
				if err != nil {
					t.Fatal(err)
				}
				require.Granted(t, require.Userfaultfd, lazy.Probe()) // which the QEMU has to have
			}
			source := startQEMU(t, args...)
			source.enable(capability)
			source.waitCounted(0)
			stream := source.migrate()
			b := &bodies{walker: ram.Walker{Format: format}}
			doc, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(stream)), b)
			if err != nil {
				t.Fatal(err)
			}
			var again bytes.Buffer
			w := qemufile.NewWriter(&again)
			doc.Put(w)
			if err := w.Flush(); err != nil || !bytes.Equal(again.Bytes(), stream) {
				t.Fatalf("put together, it differs: %v", err)
			}
			set := []string{capability}
			if capability == "background-snapshot" {
				set = nil // which is of the source alone, whose guest ran on
				source.waitCounted(source.waitCounted(counted(t, b)))
			}
			target := resume(t, stream, set, args...)
			target.wantRunsOn(counted(t, b))
			target = resume(t, compose(t, doc, b), set, args...)
			target.wantRunsOn(counted(t, b))
		})
	}
}

// Very old machine types have neither a configuration nor footers.
func TestQEMUsOldestStreamsComeBackByteForByte(t *testing.T) {
	args := []string{"-accel", "tcg", "-machine", "pc", "-m", "8", "-bios", countingBIOS(t),
		"-global", "migration.send-configuration=off", "-global", "migration.send-section-footer=off"}
	source := startQEMU(t, args...)
	source.waitCounted(0)
	stream := source.migrate()
	b := &bodies{}
	var again bytes.Buffer
	w := qemufile.NewWriter(&again)
	s := vmstate.Scanner{
		NoConfiguration: true, NoFooters: true,
		Record: func(rec *vmstate.Record) error {
			rec.Put(w)
			if rec.Type == vmstate.SectionFull {
				_, err := rec.Decode()
				return err
			}
			return nil
		},
		Live: func(h vmstate.Header, r *qemufile.Reader) error {
			body, err := b.DecodeLive(h, r)
			body.Put(w)
			return err
		},
	}
	if err := s.Stream(qemufile.NewReader(bytes.NewReader(stream))); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil || !bytes.Equal(again.Bytes(), stream) {
		t.Fatalf("put together, it differs: %v", err)
	}
	resume(t, again.Bytes(), nil, args...).wantRunsOn(counted(t, b))
}

// Dirty bitmaps are a live device that is not known here.
func TestQEMUsDirtyBitmapsAreCarried(t *testing.T) {
	args := []string{"-accel", "tcg", "-machine", "pc", "-m", "8", "-bios", countingBIOS(t),
		"-blockdev", "null-co,node-name=disk,size=67108864", "-device", "virtio-blk-pci,drive=disk"}
	source := startQEMU(t, args...)
	source.enable("dirty-bitmaps")
	for _, name := range []string{"a", "b"} {
		source.do("block-dirty-bitmap-add", arguments{"node": "disk", "name": name})
		source.do("human-monitor-command", arguments{"command-line": `qemu-io disk "write 1M 3M"`})
	}
	stream := source.migrate()
	b := &bodies{}
	doc, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(stream)), b)
	if err != nil {
		t.Fatal(err)
	}
	carried := 0
	for _, rec := range doc.Records {
		if _, ok := rec.Live.(vmstate.Opaque); ok && rec.Header.Name == "dirty-bitmap" {
			carried++
		}
	}
	if carried < 2 {
		t.Errorf("%d sections of dirty bitmaps", carried)
	}
	var again bytes.Buffer
	w := qemufile.NewWriter(&again)
	doc.Put(w)
	if err := w.Flush(); err != nil || !bytes.Equal(again.Bytes(), stream) {
		t.Fatalf("put together, it differs: %v", err)
	}
	resume(t, again.Bytes(), []string{"dirty-bitmaps"}, args...)
}

// A stream all of whose parts are composed here: a machine of two devices that QEMU's
// machine none has.
func TestQEMULoadsAMachineThatWeSaved(t *testing.T) {
	size, state := uint32(8), [100]byte{}
	copy(state[:], "running")
	var ticks, clock int64 = 1, 2
	var reg vmstate.Registry
	for _, err := range []error{
		reg.Register(vmstate.Entry{Name: "timer", Version: 2}, fieldsFunc(func(f *vmstate.Fields) {
			f.Int64("cpu_ticks_offset", &ticks)
			f.Unused(8)
			f.Int64("cpu_clock_offset", &clock)
		})),
		reg.Register(vmstate.Entry{Name: "globalstate", Version: 1}, fieldsFunc(func(f *vmstate.Fields) {
			f.Uint32("size", &size)
			f.Bytes("runstate", state[:])
		})),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var stream bytes.Buffer
	w := qemufile.NewWriter(&stream)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none", Capabilities: []string{}})
	w.Fail(reg.SaveDevices(w))
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	resume(t, stream.Bytes(), nil, "-machine", "none")
}

type fieldsFunc func(*vmstate.Fields)

func (fn fieldsFunc) VMState(f *vmstate.Fields) { fn(f) }
