package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// frames returns datagrams of one flow, each with data of its own.
func frames(t testing.TB, n int) (list [][]byte) {
	for i := range n {
		f, err := hex.DecodeString(udpA)
		if err != nil {
			t.Fatal(err)
		}
		f[len(f)-1] = byte(i)
		list = append(list, f)
	}
	return list
}

// classic returns a pcap file.
func classic(order binary.AppendByteOrder, magic uint32, list [][]byte) []byte {
	b := order.AppendUint32(nil, magic)
	b = order.AppendUint16(order.AppendUint16(b, 2), 4)
	for _, v := range []uint32{0, 0, 1 << 18, 1} {
		b = order.AppendUint32(b, v)
	}
	for i, f := range list {
		for _, v := range []uint32{1700000000, uint32(i), uint32(len(f)), uint32(len(f))} {
			b = order.AppendUint32(b, v)
		}
		b = append(b, f...)
	}
	return b
}

// block is one of a pcapng file.
func block(order binary.AppendByteOrder, kind uint32, body ...byte) []byte {
	body = append(body, make([]byte, -len(body)&3)...)
	b := order.AppendUint32(order.AppendUint32(nil, kind), uint32(12+len(body)))
	return order.AppendUint32(append(b, body...), uint32(12+len(body)))
}

// section begins a section of a pcapng file, with two interfaces: one of another link type,
// which has sent nothing, and one of Ethernet. Options and blocks of many kinds are between.
func section(order binary.AppendByteOrder, simple bool) []byte {
	option := func(kind uint16, data string) []byte {
		b := order.AppendUint16(order.AppendUint16(nil, kind), uint16(len(data)))
		return append(append(b, data...), make([]byte, -len(data)&3)...)
	}
	end := option(0, "")
	head := order.AppendUint16(order.AppendUint16(order.AppendUint32(nil, 0x1a2b3c4d), 1), 0)
	head = append(order.AppendUint64(head, 1<<64-1), append(append(option(1, "a comment"), option(3, "Linux")...), end...)...)
	b := block(order, ngMagic, head...)
	link := func(kind uint16) []byte {
		d := order.AppendUint32(order.AppendUint16(order.AppendUint16(nil, kind), 0), 1<<18)
		return append(append(append(d, option(2, "eth0")...), option(9, "\x09")...), end...)
	}
	if !simple { // simple packets are of the first interface
		b = append(b, block(order, 1, link(105)...)...)
	}
	b = append(b, block(order, 1, link(1)...)...)
	b = append(b, block(order, 0xbad, []byte("private\x00")...)...)
	b = append(b, block(order, 4, append([]byte{}, end...)...)...)
	return b
}

func enhanced(order binary.AppendByteOrder, i int, f []byte) []byte {
	at := uint64(1700000000e9) + uint64(i)*1000
	var d []byte
	for _, v := range []uint32{1, uint32(at >> 32), uint32(at), uint32(len(f)), uint32(len(f))} {
		d = order.AppendUint32(d, v)
	}
	d = append(d, f...)
	d = append(d, make([]byte, -len(d)&3)...)
	d = order.AppendUint32(order.AppendUint16(order.AppendUint16(d, 2), 4), 1) // it came in
	return block(order, 6, append(d, 0, 0, 0, 0)...)
}

func simple(order binary.AppendByteOrder, f []byte) []byte {
	return block(order, 3, append(order.AppendUint32(nil, uint32(len(f))), f...)...)
}

// formats returns captures of the same frames.
func formats(t testing.TB, list [][]byte) map[string][]byte {
	all := map[string][]byte{}
	for name, order := range map[string]binary.AppendByteOrder{"little": binary.LittleEndian, "big": binary.BigEndian} {
		all["pcap "+name] = classic(order, 0xa1b2c3d4, list)
		all["nanosecond pcap "+name] = classic(order, 0xa1b23c4d, list)
		ng, plain := section(order, false), section(order, true)
		for i, f := range list {
			if i == 2 { // another section, in the other order
				order = map[binary.AppendByteOrder]binary.AppendByteOrder{binary.LittleEndian: binary.BigEndian, binary.BigEndian: binary.LittleEndian}[order]
				ng = append(ng, section(order, false)...)
				plain = append(plain, section(order, true)...)
			}
			ng = append(ng, enhanced(order, i, f)...)
			plain = append(plain, simple(order, f)...)
		}
		all["pcapng "+name], all["simple pcapng "+name] = ng, plain
		old := ng
		for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
			version := func(minor uint16) []byte {
				return order.AppendUint16(order.AppendUint16(order.AppendUint32(nil, 0x1a2b3c4d), 1), minor)
			}
			old = bytes.ReplaceAll(old, version(0), version(2))
		}
		all["pcapng 1.2 "+name] = old
	}
	for name, b := range maps.Clone(all) {
		var z bytes.Buffer
		w := gzip.NewWriter(&z)
		w.Write(b)
		w.Close()
		all["gzip "+name] = z.Bytes()
	}
	return all
}

func TestOneFrameIsTheSameInEachFormat(t *testing.T) {
	all := map[string]string{}
	for name, b := range formats(t, frames(t, 4)) {
		all[name] = written(t, b)
	}
	for name, b := range all {
		for other, c := range all {
			sum, notes, err := summed(t, b, c)
			if err != nil || sum["matched"] != 4 || sum["secondary"] != 4 {
				t.Errorf("%s, %s: %v %v %q", name, other, sum, err, notes)
			}
		}
	}
}

// Nobody takes a file for equal of which a part was passed over.
func TestABlockThatContradictsItselfIsNoEnd(t *testing.T) {
	list := frames(t, 4)
	whole := written(t, classic(binary.LittleEndian, 0xa1b2c3d4, list))
	for name, order := range map[string]binary.AppendByteOrder{"little": binary.LittleEndian, "big": binary.BigEndian} {
		begin := append(section(order, false), enhanced(order, 0, list[0])...)
		packet := func(captured uint32) []byte {
			b := enhanced(order, 1, list[1])
			return append(b[:20], append(order.AppendUint32(nil, captured), b[24:]...)...)
		}
		version := section(order, false)
		copy(version[12:], order.AppendUint16(nil, 2))
		for what, b := range map[string][]byte{
			"a packet that is longer than its block":        packet(5000),
			"a packet of a byte too many":                   packet(uint32(len(enhanced(order, 1, list[1])) - 32 + 1)),
			"a block that is too short for any packet":      block(order, 6),
			"a block that is too short for a block":         order.AppendUint32(order.AppendUint32(order.AppendUint32(nil, 6), 4), 4),
			"a section header that is too short":            block(order, ngMagic, order.AppendUint32(nil, 0x1a2b3c4d)...),
			"a description that is too short":               block(order, 1),
			"a simple packet without its length":            block(order, 3),
			"a section of a version that nobody here reads": version,
		} {
			for _, behind := range [][]byte{nil, enhanced(order, 2, list[2])} {
				file := written(t, append(append(bytes.Clone(begin), b...), behind...))
				sum, notes, err := summed(t, file, whole)
				if err == nil || errors.Is(err, errDiverged) || !strings.Contains(err.Error(), "packet 2") {
					t.Errorf("%s, %s, %d bytes behind it: %v %v %q", what, name, len(behind), sum, err, notes)
				}
			}
		}
	}
}

func TestACaptureComesOnTheStandardInput(t *testing.T) {
	const file = "testdata/a.pcap.gz"
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	was := os.Stdin
	defer func() { os.Stdin = was }()
	os.Stdin = f
	if sum, notes, err := summed(t, "-", file); err != nil || sum["matched"] != 23 {
		t.Errorf("%v %v %q", sum, err, notes)
	}
}

// A file that ends anywhere is read as far as it goes.
func TestACaptureThatEndsAnywhereIsSummedUp(t *testing.T) {
	list := frames(t, 4)
	whole := written(t, classic(binary.LittleEndian, 0xa1b2c3d4, list))
	for name, b := range formats(t, list) {
		got := 0
		for n := range b {
			if require.Sampled() && n%11 != 0 {
				continue
			}
			sum, notes, err := summed(t, written(t, b[:n]), whole)
			switch {
			case sum == nil && got == 0 && err != nil && !errors.Is(err, errDiverged): // within the head
			case sum == nil, err != nil && !errors.Is(err, errDiverged):
				t.Errorf("%s: of %d bytes the first %d: %v %q", name, len(b), n, err, notes)
			case sum["primary"] < got, sum["matched"] != sum["primary"]:
				t.Errorf("%s: of %d bytes the first %d: %v, %d packets before", name, len(b), n, sum, got)
			default:
				got = sum["primary"]
			}
		}
		if got < 3 {
			t.Errorf("%s: %d packets at most", name, got)
		}
	}
}

// A length that is as great as can be takes no memory, and no time.
func TestALengthBeyondTheFileIsAnEnd(t *testing.T) {
	list := frames(t, 2)
	whole := written(t, classic(binary.LittleEndian, 0xa1b2c3d4, list))
	for name, b := range formats(t, list) {
		if strings.HasPrefix(name, "gzip") {
			continue
		}
		for at := 4; at+4 <= len(b); at += 4 {
			if require.Sampled() && at%12 != 0 {
				continue
			}
			for _, v := range []uint32{0, 1<<32 - 1, 1<<31 - 1, 0x7fffff00} {
				c := bytes.Clone(b)
				binary.LittleEndian.PutUint32(c[at:], v)
				var out bytes.Buffer
				func() {
					defer func() {
						if e := recover(); e != nil {
							t.Errorf("%s: %#x at %d: %v", name, v, at, e)
						}
					}()
					run(t.Context(), []string{written(t, c), whole}, &out, &out)
				}()
			}
		}
	}
}
