package zstd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
)

// frameOf returns a frame of one block, which is the last.
func frameOf(size byte, kind int, block []byte) []byte {
	f := binary.LittleEndian.AppendUint32(nil, magic)
	head := 1 | kind<<1 | len(block)<<3
	f = append(f, 1<<5, size, byte(head), byte(head>>8), byte(head>>16))
	return append(f, block...)
}

// reaching returns a frame of a literal and of a match of four bytes, so many bytes back (5 to 12).
func reaching(back byte) []byte {
	const rle = 0x54 // all three tables have one code
	return frameOf(5, 2, []byte{1 << 3, 'x', 1, rle, 1, 3, 1, 1<<3 | (back - 5)})
}

// A match that reaches beyond its frame would bring bytes of the frame before.
func TestAMatchReachesNoFurtherThanItsFrame(t *testing.T) {
	before := []byte("0123456789abcdef")
	for back := byte(5); back <= 12; back++ {
		for _, frames := range []int{0, 1, 3} {
			var d Decoder
			for range frames {
				got := make([]byte, len(before))
				if err := d.Decode(got, frameOf(byte(len(before)), 0, before)); err != nil || !bytes.Equal(got, before) {
					t.Fatalf("%q, %v", got, err)
				}
			}
			got := make([]byte, 5)
			if err := d.Decode(got, reaching(back)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d bytes back after %d frames: %q, %v", back, frames, got, err)
			}
		}
	}
}

// What a frame decompresses to does not depend on the frames before it, however many and long those are.
func TestAFrameIsDecompressedAsByADecoderOfItsOwn(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var d Decoder
	for n := range 200 {
		var frame []byte
		size := 1 + r.IntN(250)
		switch r.IntN(4) {
		case 0:
			block := make([]byte, size)
			for i := range block {
				block[i] = byte(r.Uint32())
			}
			frame = frameOf(byte(size), 0, block)
		case 1:
			frame = frameOf(byte(size), 1, []byte{byte(r.Uint32())})
			binary.LittleEndian.PutUint16(frame[6:], uint16(1|1<<1|size<<3)) // the length of what is repeated
		case 2: // a literal, and one that is repeated by the first repeated offset, which is 1
			frame, size = frameOf(5, 2, []byte{1 << 3, byte(r.Uint32()), 1, 0x54, 1, 0, 1, 1}), 5
		default:
			frame, size = reaching(byte(5+r.IntN(8))), 5
		}
		want, got := make([]byte, size), make([]byte, size)
		var own Decoder
		wants := own.Decode(want, frame)
		err := d.Decode(got, frame)
		if (err == nil) != (wants == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("frame %d, % x: %q, %v; a decoder of its own says %q, %v", n, frame, got, err, want, wants)
		}
		if err != nil {
			d = Decoder{}
		}
	}
}
