package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// ngFile returns a pcapng file with one interface of Ethernet that has the options, and packets
// at these ticks.
func ngFile(order binary.AppendByteOrder, options []byte, list [][]byte, ticks ...uint64) []byte {
	head := order.AppendUint16(order.AppendUint16(order.AppendUint32(nil, 0x1a2b3c4d), 1), 0)
	b := block(order, ngMagic, order.AppendUint64(head, 1<<64-1)...)
	b = append(b, block(order, 1, append(order.AppendUint32(order.AppendUint16(order.AppendUint16(nil, 1), 0), 0), options...)...)...)
	for i, at := range ticks {
		f := list[i%len(list)]
		d := []byte{0, 0, 0, 0}
		for _, v := range []uint32{uint32(at >> 32), uint32(at), uint32(len(f)), uint32(len(f))} {
			d = order.AppendUint32(d, v)
		}
		b = append(b, block(order, 6, append(d, f...)...)...)
	}
	return b
}

func ngOption(order binary.AppendByteOrder, kind uint16, data ...byte) []byte {
	b := order.AppendUint16(order.AppendUint16(nil, kind), uint16(len(data)))
	return append(append(b, data...), make([]byte, -len(data)&3)...)
}

// Times are in the units that the interface names, if the reader of pcapng reads those.
func TestTimesHaveTheUnitsOfTheirInterface(t *testing.T) {
	list := frames(t, 1)
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		resolution := func(v byte) []byte { return ngOption(order, 9, v) }
		offset := func(s int64) []byte { return ngOption(order, 14, order.AppendUint64(nil, uint64(s))...) }
		for _, c := range []struct {
			options []byte
			ticks   uint64
			want    time.Time
		}{
			{nil, 1700000000123456, time.Unix(1700000000, 123456000)},
			{resolution(1), 17000000005, time.Unix(1700000000, 5e8)},
			{resolution(3), 1700000000123, time.Unix(1700000000, 123e6)},
			{resolution(6), 1700000000123456, time.Unix(1700000000, 123456000)},
			{resolution(9), 1700000000123456789, time.Unix(1700000000, 123456789)},
			{resolution(10), 17000000001234567899, time.Unix(1700000000, 123456789)},
			{resolution(12), 5123456789012, time.Unix(5, 123456789)},
			{resolution(19), 15e18, time.Unix(1, 5e8)},
			{resolution(0x80), 1700000000, time.Unix(1700000000, 0)},
			{resolution(0x81), 3, time.Unix(1, 5e8)},
			{resolution(0x80 + 10), 1700000000<<10 + 512, time.Unix(1700000000, 499999744)},
			{resolution(0x80 + 9), 1700000000<<9 + 1<<8, time.Unix(1700000000, 5e8)},
			{append(resolution(0x80), offset(1600000000)...), 5, time.Unix(1600000005, 0)},
			{append(offset(-3600), resolution(9)...), 1700000000000000007, time.Unix(1700000000-3600, 7)},
			{append(ngOption(order, 2, []byte("eth0")...), append(resolution(3), ngOption(order, 0)...)...), 2500, time.Unix(2, 5e8)},
		} {
			s := shots(t, ngFile(order, c.options, list, c.ticks))
			if len(s) != 1 || !s[0].at.Equal(c.want) {
				t.Errorf("%v, %x, %d ticks: %v, want %v", order, c.options, c.ticks, s, c.want)
			}
		}
	}
}

// shots returns what is in a capture.
func shots(t testing.TB, b []byte) (list []shot) {
	t.Helper()
	c, err := newCapture(io.NopCloser(bytes.NewReader(b)))
	for err == nil {
		var s shot
		if s, err = c.next(); err == nil {
			list = append(list, s)
		}
	}
	if err != io.EOF {
		t.Errorf("%v", err)
	}
	return list
}

// Two captures with other units are of the same times.
func TestCapturesWithOtherUnitsAreMergedByTheirTimes(t *testing.T) {
	list := frames(t, 3)
	order := binary.LittleEndian
	p := ngFile(order, ngOption(order, 9, 0x80), list, 100, 200, 300)
	s := ngFile(order, ngOption(order, 9, 9), list, 100e9, 200e9, 300e9)
	sum, notes, err := summed(t, "-offset", "0s", written(t, p), written(t, s))
	if err != nil || sum["matched"] != 3 || sum["checkpoints"] != 0 {
		t.Errorf("%v %v %q", sum, err, notes)
	}
}

// What a packet needs is refused if it contradicts itself, and what it does not need is passed
// over, whatever is in it.
func TestWhatPacketsDoNotNeedIsPassedOver(t *testing.T) {
	list := frames(t, 2)
	for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
		file := func(between []byte, options ...byte) []byte {
			b := ngFile(order, options, list, 1, 2)
			at := len(b) - len(block(order, 6, make([]byte, 20+len(list[1]))...)) // in front of the last packet
			return append(append(bytes.Clone(b[:at]), between...), b[at:]...)
		}
		for what, between := range map[string][]byte{
			"nothing":                             nil,
			"statistics of an unknown interface":  block(order, 5, bytes.Repeat([]byte{9}, 12)...),
			"statistics of no interface":          block(order, 5),
			"names that end early":                block(order, 4, order.AppendUint16(order.AppendUint16(nil, 1), 900)...),
			"an end of names with a length":       block(order, 4, order.AppendUint16(order.AppendUint16(nil, 0), 4)...),
			"secrets of 4 GiB":                    block(order, 10, order.AppendUint32([]byte("KSLT"), 1<<32-1)...),
			"a block of systemd's journal":        block(order, 9, []byte("__CURSOR=x\n")...),
			"a custom block":                      block(order, 0xbad, 1, 2, 3, 4, 5, 6, 7, 8),
			"a local block":                       block(order, 0x80000001, 1, 2, 3),
			"an interface that sends nothing":     block(order, 1, 0, 220, 0, 0, 0, 0, 0, 0),
			"an empty block of a kind unheard of": block(order, 0x7fffffff),
		} {
			if got := shots(t, file(between)); len(got) != 2 {
				t.Errorf("%v, %s: %d packets", order, what, len(got))
			}
		}
		damaged := func(at int, v ...byte) []byte {
			b := file(nil)
			copy(b[at:], v)
			return b
		}
		end := order.AppendUint32(nil, 9999)
		for what, b := range map[string][]byte{
			"an option beyond its block":             file(nil, order.AppendUint16(order.AppendUint16(nil, 2), 8)...),
			"a resolution of two bytes":              file(nil, ngOption(order, 9, 6, 6)...),
			"a resolution of no byte":                file(nil, ngOption(order, 9)...),
			"an offset of four bytes":                file(nil, ngOption(order, 14, 0, 0, 0, 1)...),
			"seconds, as a power of ten":             file(nil, ngOption(order, 9, 0)...),
			"units that are too small, of ten":       file(nil, ngOption(order, 9, 20)...),
			"units that are too small, of two":       file(nil, ngOption(order, 9, 0x80+24)...),
			"units that are far too small":           file(nil, ngOption(order, 9, 0x80+64)...),
			"options of more than a megabyte":        file(nil, bytes.Repeat(ngOption(order, 1, make([]byte, 65000)...), 17)...),
			"another length at a section's end":      damaged(24, end...),
			"another length at an interface's end":   damaged(28+16, end...),
			"a packet before any interface":          append(file(nil)[:28:28], file(nil)[28+20:]...),
			"a packet of an interface behind it":     file(block(order, 6, append(order.AppendUint32(nil, 1), make([]byte, 16)...)...)),
			"a packet of the last of all interfaces": file(block(order, 6, append(order.AppendUint32(nil, 1<<32-1), make([]byte, 16)...)...)),
			"an old packet of another interface":     file(block(order, 2, append(order.AppendUint16(nil, 7), make([]byte, 18)...)...)),
			"a simple packet that is too long":       file(block(order, 3, order.AppendUint32(nil, 5)...)),
			"a length that is no multiple of four":   file(append(append(order.AppendUint32(order.AppendUint32(nil, 9), 13), 0), order.AppendUint32(nil, 13)...)),
			"a section in no order of bytes":         file(block(order, ngMagic, make([]byte, 16)...)),
		} {
			c, err := newCapture(io.NopCloser(bytes.NewReader(b)))
			for err == nil {
				_, err = c.next()
			}
			if !errors.Is(err, errBlock) && (err == nil || !strings.Contains(err.Error(), "not present in section")) {
				t.Errorf("%v, %s: %v", order, what, err)
			}
		}
	}
}

// A file may have interfaces of several links, some of which nobody reads here.
func TestAnInterfaceThatIsNotReadDoesNotHideTheOthers(t *testing.T) {
	order := binary.LittleEndian
	list := frames(t, 3)
	packet := func(i uint32) []byte {
		return block(order, 6, append(append(order.AppendUint32(nil, i), 0, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 4, 0, 0, 0), "usb!"...)...)
	}
	link := func(kind uint16) []byte {
		return block(order, 1, append(order.AppendUint16(nil, kind), make([]byte, 6)...)...)
	}
	b := append(append(ngFile(order, nil, list, 1, 2), link(220)...), packet(1)...)
	more := ngFile(order, nil, list[2:], 3)
	b = append(b, more[28+20:]...) // its packet
	whole := written(t, ngFile(order, nil, list, 1, 2, 3))
	sum, notes, err := summed(t, written(t, b), whole)
	if err != nil || sum["matched"] != 3 || sum["primary"] != 3 || !strings.Contains(notes, "1 packets were not looked at, the first for this: packet 3: link type 220") {
		t.Errorf("%v %v %q", sum, err, notes)
	}
	b = append(append(ngFile(order, nil, list), link(220)...), packet(1)...)
	if sum, notes, err := summed(t, written(t, b), whole); err == nil || errors.Is(err, errDiverged) || !strings.Contains(err.Error(), "link type 220") {
		t.Errorf("no other packet: %v %v %q", sum, err, notes)
	}
}

// A compressed capture may be in several parts, and in a place that is longer than it.
func TestACompressedCaptureMayHavePartsAndPadding(t *testing.T) {
	list := frames(t, 4)
	b := classic(binary.LittleEndian, 0xa1b2c3d4, list)
	whole := written(t, b)
	packed := func(parts ...[]byte) (z []byte) {
		for _, p := range parts {
			var w bytes.Buffer
			g := gzip.NewWriter(&w)
			g.Write(p)
			g.Close()
			z = append(z, w.Bytes()...)
		}
		return z
	}
	zeros := make([]byte, 5000)
	two := packed(b[:100], b[100:])
	for what, c := range map[string]struct {
		z    []byte
		want int // packets
		note string
		bad  bool
	}{
		"one part":                   {packed(b), 4, "", false},
		"two parts":                  {two, 4, "", false},
		"many parts":                 {packed(b[:1], nil, b[1:24], b[24:30], nil, b[30:]), 4, "", false},
		"a zero behind it":           {append(packed(b), 0), 4, "", false},
		"many zeros behind it":       {append(packed(b), zeros...), 4, "", false},
		"two parts, and zeros":       {append(two, zeros...), 4, "", false},
		"a part that ends in a head": {append(packed(b[:100]), packed(b[100:])[:5]...), 0, "ends within a packet", false},
		"a byte of another part":     {append(packed(b), 0x1f), 4, "ends within a packet", false},
		"something else behind it":   {append(packed(b), "junk that is none"...), 4, "", true},
		"zeros, and another part":    {append(append(packed(b), 0, 0), packed(b)...), 4, "", true},
	} {
		sum, notes, err := summed(t, written(t, c.z), whole)
		if (err != nil && !errors.Is(err, errDiverged)) != c.bad || sum["matched"] < c.want || !strings.Contains(notes, c.note) {
			t.Errorf("%s: %v %v %q", what, sum, err, notes)
		}
	}
}

// An address of a link may be given with its zone, as programs print it.
func TestAGuestIsNamedAsProgramsPrintItsAddress(t *testing.T) {
	f := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 12, 17, 64}, make([]byte, 32+12)...)
	f[22], f[23], f[37], f[38], f[53] = 0xfe, 0x80, 5, 0xff, 1
	f[55], f[57], f[59] = 80, 81, 12
	file := written(t, classic(binary.LittleEndian, 0xa1b2c3d4, [][]byte{f}))
	for name, want := range map[string]int{
		"fe80::5": 1, "fe80::5%eth0": 1, "FE80::5%3": 1, "fe80:0:0:0:0:0:0:5": 1, "02:00:00:00:00:02": 1, "02-00-00-00-00-02": 1,
		"fe80::6": 0, "fe80::6%eth0": 0, "02:00:00:00:00:01": 0,
	} {
		if sum, notes, err := summed(t, "-guest", name, file, file); err != nil || sum["matched"] != want {
			t.Errorf("%s: %v %v %q", name, sum, err, notes)
		}
	}
}
