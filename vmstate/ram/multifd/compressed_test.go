package multifd

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// compressed is a channel's packets with pages that zlib has compressed, in one
// stream that is flushed after each.
func compressedChannel(t testing.TB, pages [][]byte) []byte {
	t.Helper()
	var stream bytes.Buffer
	z := zlib.NewWriter(&stream)
	return written(t, func(w *qemufile.Writer) {
		for i := 0; i < len(pages); i += 3 {
			p := Packet{Method: Zlib, Block: "pc.ram"}
			stream.Reset()
			for j := i; j < min(i+3, len(pages)); j++ {
				p.Normal = append(p.Normal, uint64(j)*ram.PageSize)
				z.Write(pages[j])
			}
			z.Flush()
			p.Data = bytes.Clone(stream.Bytes())
			p.Put(w)
		}
	})
}

func TestCompressedPagesComeOutOfTheirPackets(t *testing.T) {
	var pages [][]byte
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 100 {
		p := make([]byte, ram.PageSize)
		for j := range p {
			if i%4 != 0 {
				p[j] = byte(r.IntN(1 + 64*(i%4)))
			}
		}
		pages = append(pages, p)
	}
	in := compressedChannel(t, pages)
	c := NewReader(reader(in))
	n := 0
	for {
		p, err := c.Read()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Pages()
		if err != nil {
			t.Fatal(err)
		}
		for i, off := range p.Normal {
			if !bytes.Equal(got[i*ram.PageSize:(i+1)*ram.PageSize], pages[off/ram.PageSize]) {
				t.Fatalf("page %#x is another", off)
			}
			n++
		}
	}
	if n != len(pages) {
		t.Errorf("%d pages of %d", n, len(pages))
	}
}

func TestPagesThatCannotBeDecompressedAreTyped(t *testing.T) {
	in := compressedChannel(t, [][]byte{make([]byte, ram.PageSize), make([]byte, ram.PageSize)})
	for name, x := range map[string]struct {
		change func(p []byte)
		want   error
	}{
		"another method": {func(p []byte) { p[11] = byte(Zstd) << 1 }, ErrMethod},
		"one page more":  {func(p []byte) { p[19]++ }, ErrDecode},
		"one page less":  {func(p []byte) { p[19]-- }, nil}, // the rest looks like the end of a block
		"no zlib":        {func(p []byte) { p[headerLen] = 0 }, ErrDecode},
		"corrupt":        {func(p []byte) { p[headerLen+2] |= 7 }, ErrDecode},
	} {
		p := bytes.Clone(in)
		x.change(p)
		c := NewReader(reader(p))
		if _, err := c.Read(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err := c.Pages()
		var e *Error
		if !errors.Is(err, x.want) || x.want != nil && !errors.As(err, &e) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// What needs no decoder is given as it is.
	plain := written(t, func(w *qemufile.Writer) {
		p := Packet{Block: "a", Normal: []uint64{0}, Data: make([]byte, ram.PageSize)}
		p.Put(w)
	})
	c := NewReader(reader(plain))
	if _, err := c.Read(); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Pages(); err != nil || len(got) != ram.PageSize {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// The last bytes of a packet may not be needed for its pages: those of 32 KiB and its multiples
// leave the end of a block. They are kept while the memory of the packet takes the next.
func TestWhatAPacketLeavesOverIsKept(t *testing.T) {
	const each = 8
	r := rand.New(rand.NewPCG(3, 4))
	var want [][]byte
	var stream bytes.Buffer
	z := zlib.NewWriter(&stream)
	in := written(t, func(w *qemufile.Writer) {
		for i := range 6 {
			p := Packet{Method: Zlib, Block: "pc.ram"}
			stream.Reset()
			var all []byte
			for j := range each {
				p.Normal = append(p.Normal, uint64(i*each+j)*ram.PageSize)
				page := make([]byte, ram.PageSize)
				for k := range page {
					page[k] = byte(r.IntN(64)) // so that the packets are about as long
				}
				z.Write(page)
				all = append(all, page...)
			}
			z.Flush()
			p.Data = bytes.Clone(stream.Bytes())
			p.Put(w)
			want = append(want, all)
		}
	})
	c := NewReader(reader(in))
	left := 0
	for i := range want {
		if _, err := c.Read(); err != nil {
			t.Fatal(err)
		}
		got, err := c.Pages()
		if err != nil || !bytes.Equal(got, want[i]) {
			t.Fatalf("packet %d: not what was sent, %v", i, err)
		}
		left += len(c.decoders[Zlib].(*zlibDecoder).left.p)
	}
	if left == 0 {
		t.Error("no packet leaves anything over")
	}
}

func TestBlocksWhoseNamesAreEquallyLongAreToldApart(t *testing.T) {
	names := []string{"pc.ram", "pc.rom", "pc.rom", "pc.ram"}
	in := written(t, func(w *qemufile.Writer) {
		for _, name := range names {
			p := Packet{Block: name, Zero: []uint64{0}}
			p.Put(w)
		}
	})
	c := NewReader(reader(in))
	for i, name := range names {
		if p, err := c.Read(); err != nil || p.Block != name {
			t.Fatalf("packet %d: block %q, want %q; %v", i, p.Block, name, err)
		}
	}
}
