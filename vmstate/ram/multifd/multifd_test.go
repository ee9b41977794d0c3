package multifd

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func written(t testing.TB, fn func(w *qemufile.Writer)) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := qemufile.NewWriter(&buf)
	fn(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func reader(p []byte) *qemufile.Reader {
	var r qemufile.Reader // reads memory without a buffer
	r.ResetBytes(p)
	return &r
}

var uuid = [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}

// What QEMU 7.2.22 begins its second channel with, the VM having no UUID.
const initOfQEMU = "11223344 00000001 00000000000000000000000000000000 01 00000000000000" +
	"0000000000000000000000000000000000000000000000000000000000000000"

func TestInitIsTheOneQEMUWrites(t *testing.T) {
	want := unhex(t, initOfQEMU)
	if got := written(t, Init{Channel: 1}.Put); !bytes.Equal(got, want) {
		t.Errorf("% x\nwant % x", got, want)
	}
	i, err := ReadInit(reader(want), [16]byte{}, 2)
	if err != nil || i != (Init{Channel: 1}) {
		t.Errorf("ReadInit = %+v, %v", i, err)
	}
	i, err = ReadInit(reader(written(t, Init{UUID: uuid, Channel: 7}.Put)), uuid, 8)
	if err != nil || i != (Init{UUID: uuid, Channel: 7}) {
		t.Errorf("ReadInit = %+v, %v", i, err)
	}
}

func TestBadInit(t *testing.T) {
	good := unhex(t, initOfQEMU)
	change := func(at int, b ...byte) []byte {
		p := slices.Clone(good)
		copy(p[at:], b)
		return p
	}
	for _, x := range []struct {
		name string
		in   []byte
		want error
	}{
		{"main stream", change(0, 0x51, 0x45, 0x56, 0x4d), ErrMagic},
		{"version 2", change(4, 0, 0, 0, 2), ErrVersion},
		{"another VM", change(8, 1), ErrUUID},
		{"channel 2 of 2", change(24, 2), ErrChannel},
		{"nothing", nil, io.ErrUnexpectedEOF},
		{"63 bytes", good[:63], io.ErrUnexpectedEOF},
	} {
		_, err := ReadInit(reader(x.in), [16]byte{}, 2)
		var e *Error
		if x.name == "nothing" {
			x.want = io.EOF
		}
		if !errors.Is(err, x.want) || !errors.As(err, &e) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
	}
}

func page(n byte) []byte { return bytes.Repeat([]byte{n}, ram.PageSize) }

// fullPacket has as many pages as there may be.
func fullPacket() *Packet {
	p := &Packet{Number: 9, Block: "pc.ram"}
	for i := range uint64(MaxPages) {
		if i < 100 {
			p.Normal = append(p.Normal, i<<12)
			p.Data = append(p.Data, page(byte(i))...)
		} else {
			p.Zero = append(p.Zero, i<<12)
		}
	}
	return p
}

func packets() []*Packet {
	return []*Packet{
		{Sync: true, Number: 1 << 40},
		{Number: 1, Block: "pc.ram", Normal: []uint64{0x1000, 0x5000}, Data: slices.Concat(page(1), page(2))},
		{Number: 2, Block: "pc.ram", Zero: []uint64{0x2000}},
		{Number: 3, Block: strings.Repeat("n", 255), Sync: true, Normal: []uint64{0}, Zero: []uint64{0x1000}, Data: page(3)},
		{Number: 4, Method: Zlib, Block: "pc.ram", Normal: []uint64{0x1000}, Data: []byte("deflated")},
		{Number: 5, Method: Zstd, Block: "pc.ram", Normal: []uint64{0x1000, 0x2000}, Data: []byte("compressed")},
		fullPacket(),
		{Device: &Device{Name: "0000:00:02.0/vfio", Instance: 3}, Data: []byte("state")},
		{Device: &Device{Name: "empty"}},
	}
}

// as makes empty and nil lists alike.
var as = cmp.Options{cmp.Comparer(bytes.Equal), cmp.Comparer(slices.Equal[[]uint64])}

func TestPacketsRoundTrip(t *testing.T) {
	in := written(t, func(w *qemufile.Writer) {
		for _, p := range packets() {
			p.Put(w)
		}
	})
	c := NewReader(reader(in))
	for i, want := range packets() {
		got, err := c.Read()
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if d := cmp.Diff(*want, *got, as); d != "" {
			t.Errorf("packet %d: %s", i, d)
		}
	}
	if _, err := c.Read(); err != io.EOF {
		t.Errorf("after the last packet: %v", err)
	}
}

func TestHeaderIsWhatQEMUWrites(t *testing.T) {
	got := written(t, packets()[1].Put)
	if len(got) != 1344+2*ram.PageSize {
		t.Fatalf("%d bytes", len(got))
	}
	head := slices.Concat(
		unhex(t, "11223344 00000001 00000000 00000080 00000002 00002000 0000000000000001"),
		make([]byte, 32), []byte("pc.ram"), make([]byte, 250),
		unhex(t, "0000000000001000 0000000000005000"), make([]byte, 126*8), page(1), page(2))
	if !bytes.Equal(got, head) {
		t.Error("header or pages differ")
	}
}

func TestPagesAreTakenFromABlock(t *testing.T) {
	mem := slices.Concat(page(0), page(1), page(2), page(3))
	p := &Packet{Number: 1, Block: "ram", Normal: []uint64{0x3000, 0x1000}, Zero: []uint64{0}}
	got, err := NewReader(reader(written(t, func(w *qemufile.Writer) { p.PutFrom(w, mem) }))).Read()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Page(0), page(3)) || !bytes.Equal(got.Page(1), page(1)) {
		t.Error("wrong pages")
	}
	for _, bad := range []*Packet{
		{Block: "ram", Normal: []uint64{0x4000}},
		{Block: "ram", Normal: []uint64{1 << 63}},
		{Block: "ram", Method: Zlib, Normal: []uint64{0}},
	} {
		w := qemufile.NewWriter(io.Discard)
		bad.PutFrom(w, mem)
		var e *Error
		if !errors.As(w.Err(), &e) {
			t.Errorf("%+v: %v", bad, w.Err())
		}
	}
}

// QEMU 7.2 leaves the length and the offsets of the packet before in a SYNC
// packet.
func TestStaleFieldsOfASyncPacketAreIgnored(t *testing.T) {
	in := written(t, packets()[0].Put)
	copy(in[20:], unhex(t, "00080000"))
	copy(in[320:], unhex(t, "ffffffffffffffff"))
	c := NewReader(reader(in))
	p, err := c.Read()
	if err != nil || !p.Sync || len(p.Data) != 0 {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := c.Read(); err != io.EOF {
		t.Errorf("after it: %v", err)
	}
}

func TestBadPackets(t *testing.T) {
	good := written(t, packets()[1].Put)
	change := func(at int, s string) []byte {
		p := slices.Clone(good)
		copy(p[at:], unhex(t, s))
		return p
	}
	device := written(t, packets()[7].Put)
	deviceOf := func(at int, s string) []byte {
		p := slices.Clone(device)
		copy(p[at:], unhex(t, s))
		return p
	}
	for _, x := range []struct {
		name string
		in   []byte
		want error
	}{
		{"another magic", change(0, "11223345"), ErrMagic},
		{"version 0", change(4, "00000000"), ErrVersion},
		{"unknown flag", change(8, "00000080"), ErrFlags},
		{"two methods at once", change(8, "00000006"), ErrFlags},
		{"more pages allocated than there may be", change(12, "00000081"), ErrCount},
		{"more pages than allocated", change(16, "00000081"), ErrCount},
		{"2^32-1 pages", change(16, "ffffffff"), ErrCount},
		{"zero pages beyond the rest", change(32, "0000007f"), ErrCount},
		{"2^32-1 zero pages", change(32, "ffffffff"), ErrCount},
		{"contents of another length", change(20, "00001000"), ErrSize},
		{"contents of 4 GiB", change(20, "ffffffff"), ErrSize},
		{"no contents", change(20, "00000000"), ErrSize},
		{"pages of no block", change(64, "00"), ErrBlock},
		{"block name without end", change(64, strings.Repeat("61", 256)), ErrBlock},
		{"unaligned page", change(320, "0000000000001001"), ErrOffset},
		{"device state with SYNC", deviceOf(8, "00000041"), ErrFlags},
		{"device state, compressed", deviceOf(8, "00000042"), ErrFlags},
		{"device state of 4 GiB", deviceOf(272, "ffffffff"), ErrSize},
		{"device without a name", deviceOf(12, "00"), ErrBlock},
		{"device name without end", deviceOf(12, strings.Repeat("61", 256)), ErrBlock},
	} {
		t.Run(x.name, func(t *testing.T) {
			_, err := NewReader(reader(x.in)).Read()
			var e *Error
			if !errors.Is(err, x.want) || !errors.As(err, &e) || e.Error() == "" {
				t.Errorf("Read = %v, want %v", err, x.want)
			}
		})
	}
	for _, in := range [][]byte{good, device} {
		c := NewReader(nil)
		for n := 1; n < len(in); n++ {
			if n > 1400 && n%101 != 0 {
				continue // in the middle of a page
			}
			c.r = reader(in[:n])
			_, err := c.Read()
			var e *Error
			if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.As(err, &e) {
				t.Fatalf("%d bytes of %d: %v", n, len(in), err)
			}
		}
	}
}

func TestBadPacketsAreNotWritten(t *testing.T) {
	for _, x := range []struct {
		name string
		p    Packet
		want error
	}{
		{"too many pages", Packet{Block: "a", Zero: make([]uint64, MaxPages+1)}, ErrCount},
		{"contents missing", Packet{Block: "a", Normal: []uint64{0}}, ErrSize},
		{"contents of no page", Packet{Data: []byte{1}}, ErrSize},
		{"long block name", Packet{Block: strings.Repeat("x", 256)}, ErrBlock},
		{"zero in a block name", Packet{Block: "a\x00b", Zero: []uint64{0}}, ErrBlock},
		{"unknown method", Packet{Method: 3}, ErrFlags},
		{"device with pages", Packet{Device: &Device{Name: "d"}, Zero: []uint64{0}}, ErrFlags},
	} {
		w := qemufile.NewWriter(io.Discard)
		x.p.Put(w)
		if err := w.Flush(); !errors.Is(err, x.want) {
			t.Errorf("%s: %v, want %v", x.name, err, x.want)
		}
	}
	if s := Method(3).String(); s != "method-3" {
		t.Error(s)
	}
}

func TestReadingAndWritingAllocateNothing(t *testing.T) {
	p := fullPacket()
	in := written(t, p.Put)
	var src bytes.Reader
	r := qemufile.NewReader(&src)
	c := NewReader(r)
	w := qemufile.NewWriter(io.Discard)
	if n := testing.AllocsPerRun(100, func() {
		src.Reset(in)
		r.Reset(&src)
		if _, err := c.Read(); err != nil {
			t.Fatal(err)
		}
		p.Put(w)
	}); n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

// TestPacketsReachTheGuest stages pages that came over two channels.
func TestPacketsReachTheGuest(t *testing.T) {
	host := make([]byte, 16*ram.PageSize)
	want := make([]byte, len(host))
	cache, err := ram.NewCache([]ram.Block{{Name: "ram", Host: host}}, nil, ram.CacheConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	for ch := range uint64(2) {
		in := written(t, func(w *qemufile.Writer) {
			Init{Channel: uint8(ch)}.Put(w)
			p := Packet{Number: ch, Block: "ram"}
			for i := ch; i < 16; i += 2 {
				if i%3 == 0 {
					p.Zero = append(p.Zero, i<<12)
				} else {
					p.Normal = append(p.Normal, i<<12)
					copy(want[i<<12:], page(byte(i)))
				}
			}
			p.PutFrom(w, want)
			(&Packet{Sync: true}).Put(w)
		})
		r := reader(in)
		if _, err := ReadInit(r, [16]byte{}, 2); err != nil {
			t.Fatal(err)
		}
		c := NewReader(r)
		for {
			p, err := c.Read()
			if err != nil {
				t.Fatal(err)
			}
			if p.Sync {
				break
			}
			for i, off := range p.Normal {
				if err := cache.StagePage(p.Block, off, p.Page(i)); err != nil {
					t.Fatal(err)
				}
			}
			for _, off := range p.Zero {
				if err := cache.StagePage(p.Block, off, nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := cache.Flush(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(host, want) {
		t.Error("the guest's memory differs")
	}
}

// FuzzChannel reads anything as a channel.
func FuzzChannel(f *testing.F) {
	for _, p := range packets() {
		if len(p.Data) < 1<<16 {
			f.Add(written(f, p.Put))
		}
	}
	f.Add(unhex(f, initOfQEMU))
	bad := written(f, packets()[1].Put)
	binary.BigEndian.PutUint32(bad[20:], 1<<31)
	f.Add(bad)
	f.Fuzz(readsAsItIsWritten)
}

// readsAsItIsWritten reads a channel: what reads can be written, and reads the same again; memory
// does not depend on what lengths the channel claims.
func readsAsItIsWritten(t *testing.T, in []byte) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, _ = ReadInit(reader(in), [16]byte{}, 4)
	c := NewReader(reader(in))
	for {
		p, err := c.Read()
		if err != nil {
			var e *Error
			if err != io.EOF && !errors.As(err, &e) {
				t.Fatalf("untyped error %v", err)
			}
			break
		}
		if _, err := c.Pages(); err != nil && !errors.Is(err, ErrMethod) && !errors.Is(err, ErrDecode) {
			t.Fatalf("untyped error %v", err)
		}
		var buf bytes.Buffer
		w := qemufile.NewWriter(&buf)
		p.Put(w)
		if err := w.Flush(); err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := NewReader(reader(buf.Bytes())).Read()
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if d := cmp.Diff(*p, *again, as); d != "" {
			t.Fatal(d)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20+uint64(len(in))*2000 {
		t.Fatalf("%d bytes of input took %d bytes of memory", len(in), n)
	}
}
