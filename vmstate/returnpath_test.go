package vmstate

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
)

var returnVectors = []struct {
	m   Return
	hex string
}{
	{Return{Type: ReturnShut}, "0001 0004 00000000"}, // as QEMU 7.2 ends
	{Return{Type: ReturnPong, Value: 3}, "0002 0004 00000003"},
	{Return{Type: ReturnRequestBlock, Block: "ram", Start: 0xd6000, Length: 0x1000}, `0003 0010 00000000000d6000 00001000 03 "ram"`},
	{Return{Type: ReturnRequestPages, Start: 0xd7000, Length: 0x1000}, "0004 000c 00000000000d7000 00001000"},
	{Return{Type: ReturnRecvBitmap, Block: "ram", Bitmap: []uint64{1, 1 << 63}},
		`0005 0004 03 "ram" 0000000000000010 0100000000000000 0000000000000080 0123456789abcdef`},
	{Return{Type: ReturnResumeAck, Value: 1}, "0006 0004 00000001"},
	{Return{Type: ReturnSwitchoverAck}, "0007 0000"},
}

func TestReturnBytes(t *testing.T) {
	for _, x := range returnVectors {
		want := hexBytes(t, x.hex)
		if got := written(t, func(w *qemufile.Writer) { PutReturn(w, x.m) }); !bytes.Equal(got, want) {
			t.Errorf("%v: wrote %x, want %x", x.m.Type, got, want)
		}
		m, err := ReadReturn(reader(want), 0)
		if diff := cmp.Diff(x.m, m); err != nil || diff != "" {
			t.Errorf("%v: %v %s", x.m.Type, err, diff)
		}
		for n := range want {
			_, err := ReadReturn(reader(want[:n]), 0)
			if n == 0 {
				wantError(t, "between messages", err, io.EOF)
			} else {
				wantError(t, "inside a message", err, io.ErrUnexpectedEOF)
			}
		}
	}
}

var badReturns = map[string]struct {
	hex  string
	want error
}{
	"type 0":                        {"0000 0000", ErrReturnPath},
	"an unknown type":               {"0008 0000", ErrReturnPath},
	"a length that is wrong":        {"0001 0005 0000000000", ErrReturnPath},
	"a length beyond 512":           {"0003 0201", ErrReturnPath},
	"a request of no block":         {"0003 000d 0000000000000000 00001000 00", ErrReturnPath},
	"a request with a short length": {`0003 000e 0000000000000000 00001000 03 "ram"`, ErrReturnPath},
	"a bitmap of no block":          {"0005 0001 00", ErrReturnPath},
	"a bitmap with a bad name":      {`0005 0002 03 "ram"`, ErrReturnPath},
	"a bitmap of no length":         {`0005 0004 03 "ram" 0000000000000000`, ErrReturnPath},
	"a bitmap of odd length":        {`0005 0004 03 "ram" 0000000000000009`, ErrReturnPath},
	"a bitmap of 16 EiB":            {`0005 0004 03 "ram" fffffffffffffff8`, qemufile.ErrTooLong},
	"a bitmap without its end":      {`0005 0004 03 "ram" 0000000000000008 0000000000000000 0123456789abcdee`, ErrReturnPath},
}

func TestReadReturnRefuses(t *testing.T) {
	for why, x := range badReturns {
		_, err := ReadReturn(reader(hexBytes(t, x.hex)), 0)
		wantError(t, why, err, x.want)
	}
	w := qemufile.NewWriter(io.Discard)
	PutReturn(w, Return{Type: ReturnRecvBitmap, Block: string(make([]byte, 256))})
	wantError(t, "a name too long to write", w.Err(), qemufile.ErrTooLong)
}

func TestReturnReaderKnowsTheRules(t *testing.T) {
	blocks := func(name string) (uint64, bool) { return 1 << 20, name == "ram" }
	ask := Return{Type: ReturnRequestBlock, Block: "ram", Length: 4096}
	for _, x := range []struct {
		why string
		rr  *ReturnReader
		seq []Return
		err error
	}{
		{"shut ends it", &ReturnReader{}, []Return{{Type: ReturnPong, Value: 9}, {Type: ReturnShut}}, io.EOF},
		{"a close without shut", &ReturnReader{}, []Return{{Type: ReturnPong}}, io.ErrUnexpectedEOF},
		{"shut with an error", &ReturnReader{}, []Return{{Type: ReturnShut, Value: 1}}, ErrReturnPath},
		{"pages of the last block", &ReturnReader{Block: blocks}, []Return{ask, {Type: ReturnRequestPages, Start: 4096, Length: 8192}, {Type: ReturnShut}}, io.EOF},
		{"pages of no block", &ReturnReader{}, []Return{{Type: ReturnRequestPages, Length: 4096}}, ErrReturnPath},
		{"an unknown block", &ReturnReader{Block: blocks}, []Return{{Type: ReturnRequestBlock, Block: "rom", Length: 4096}}, ErrReturnPath},
		{"a misaligned start", &ReturnReader{}, []Return{{Type: ReturnRequestBlock, Block: "ram", Start: 1, Length: 4096}}, ErrReturnPath},
		{"a misaligned length", &ReturnReader{}, []Return{{Type: ReturnRequestBlock, Block: "ram", Length: 1}}, ErrReturnPath},
		{"beyond the block", &ReturnReader{Block: blocks}, []Return{{Type: ReturnRequestBlock, Block: "ram", Start: 1 << 20, Length: 4096}}, ErrBounds},
		{"wrapping around", &ReturnReader{Block: blocks}, []Return{{Type: ReturnRequestBlock, Block: "ram", Start: 1<<64 - 4096, Length: 8192}}, ErrBounds},
		{"a bitmap outside recovery", &ReturnReader{}, []Return{{Type: ReturnRecvBitmap, Block: "ram", Bitmap: []uint64{0}}}, ErrReturnPath},
		{"a bitmap of the right size", &ReturnReader{Block: blocks, Recovering: true}, []Return{{Type: ReturnRecvBitmap, Block: "ram", Bitmap: make([]uint64, 4)}, {Type: ReturnResumeAck, Value: 1}, {Type: ReturnShut}}, io.EOF},
		{"a bitmap of another size", &ReturnReader{Block: blocks, Recovering: true}, []Return{{Type: ReturnRecvBitmap, Block: "ram", Bitmap: make([]uint64, 5)}}, ErrReturnPath},
		{"a bitmap of another block", &ReturnReader{Block: blocks, Recovering: true}, []Return{{Type: ReturnRecvBitmap, Block: "rom", Bitmap: make([]uint64, 4)}}, ErrReturnPath},
		{"a resume outside recovery", &ReturnReader{}, []Return{{Type: ReturnResumeAck, Value: 1}}, ErrReturnPath},
		{"a resume with another value", &ReturnReader{Recovering: true}, []Return{{Type: ReturnResumeAck, Value: 2}}, ErrReturnPath},
		{"an approval", &ReturnReader{}, []Return{{Type: ReturnSwitchoverAck}, {Type: ReturnShut}}, io.EOF},
	} {
		rr := x.rr
		rr.R = reader(written(t, func(w *qemufile.Writer) {
			for _, m := range x.seq {
				PutReturn(w, m)
			}
		}))
		var err error
		var m Return
		for n := 0; err == nil; n++ {
			if m, err = rr.Next(); err == nil && (m.Type == ReturnRequestPages || m.Type == ReturnRequestBlock) && m.Block != "ram" {
				t.Errorf("%s: request for block %q", x.why, m.Block)
			}
		}
		wantError(t, x.why, err, x.err)
		if rr.SwitchoverAcked() != (x.why == "an approval") {
			t.Errorf("%s: acked %t", x.why, rr.SwitchoverAcked())
		}
	}
}

// The length of the block bounds what a bitmap announces, before any of it is read, and nothing
// else does: a guest of 3 TiB whose postcopy was interrupted has a bitmap of 96 MiB.
func TestABitmapIsAsLongAsItsBlockSays(t *testing.T) {
	blocks := func(name string) (uint64, bool) {
		return map[string]uint64{"ram": 1 << 20, "big": 3 << 40}[name], name != "rom"
	}
	for _, x := range []struct {
		why, block string
		rr         *ReturnReader
		size       uint64
		err        error
	}{
		{"of a block with less", "ram", &ReturnReader{Block: blocks, Recovering: true}, 32 << 20, ErrReturnPath},
		{"of an unknown block", "rom", &ReturnReader{Block: blocks, Recovering: true}, 32, ErrReturnPath},
		{"outside recovery", "ram", &ReturnReader{Block: blocks}, 32, ErrReturnPath},
		{"of a block with as much", "ram", &ReturnReader{Block: blocks, Recovering: true}, 32, io.ErrUnexpectedEOF},
		{"of a large block", "big", &ReturnReader{Block: blocks, Recovering: true}, 96 << 20, io.ErrUnexpectedEOF},
		{"of a large block with less", "big", &ReturnReader{Block: blocks, Recovering: true}, 96<<20 + 8, ErrReturnPath},
		{"with no blocks", "big", &ReturnReader{Recovering: true}, 96 << 20, qemufile.ErrTooLong},
	} {
		// The stream ends where the bitmap would begin.
		x.rr.R = reader(written(t, func(w *qemufile.Writer) {
			w.PutBE16(uint16(ReturnRecvBitmap))
			w.PutBE16(uint16(1 + len(x.block)))
			w.PutCountedString(x.block)
			w.PutBE64(x.size)
		}))
		_, err := x.rr.Next()
		wantError(t, x.why, err, x.err)
	}
}

func TestReturnWriter(t *testing.T) {
	var b bytes.Buffer
	rw := ReturnWriter{W: qemufile.NewWriter(&b)}
	for _, err := range []error{
		rw.Pong(3), rw.RequestPages("ram", 0xd6000, 0x1000), rw.RequestPages("ram", 0xd7000, 0x1000), rw.RequestPages("rom", 0, 0x1000),
		rw.RecvBitmap("ram", []uint64{1, 1 << 63}), rw.ResumeAck(), rw.SwitchoverAck(), rw.Shut(true),
	} {
		wantNil(t, "send", err)
	}
	var want []byte
	for _, i := range []int{1, 2, 3} {
		want = append(want, hexBytes(t, returnVectors[i].hex)...)
	}
	want = append(want, hexBytes(t, `0003 0010 0000000000000000 00001000 03 "rom"`)...)
	for _, i := range []int{4, 5, 6, 0} {
		want = append(want, hexBytes(t, returnVectors[i].hex)...)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("got  %x\nwant %x", b.Bytes(), want)
	}
	wantError(t, "after shut", rw.Pong(1), ErrReturnPath)
	b.Reset()
	rw = ReturnWriter{W: qemufile.NewWriter(&b)}
	if rw.Shut(false); !bytes.Equal(b.Bytes(), hexBytes(t, "0001 0004 00000001")) {
		t.Errorf("failure: %x", b.Bytes())
	}
}

func FuzzReadReturn(f *testing.F) {
	for _, x := range returnVectors {
		f.Add(hexBytes(f, x.hex))
	}
	for _, x := range badReturns {
		f.Add(hexBytes(f, x.hex))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		r := reader(p)
		m, err := ReadReturn(r, 1<<16)
		if err != nil {
			if !errors.Is(err, ErrReturnPath) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !errors.Is(err, qemufile.ErrTooLong) {
				t.Fatalf("error of unknown kind: %v", err)
			}
			return
		}
		if again := written(t, func(w *qemufile.Writer) { PutReturn(w, m) }); !bytes.Equal(again, p[:r.Offset()]) {
			t.Fatalf("%x becomes %x", p[:r.Offset()], again)
		}
		rr := ReturnReader{R: reader(p), Recovering: true, MaxBitmap: 1 << 16}
		for err == nil {
			_, err = rr.Next()
		}
	})
}
