package qemufile

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

// FuzzReader interprets ops as a sequence of reads of data, and compares a
// Reader of a fragmented stream with one that reads memory in place.
func FuzzReader(f *testing.F) {
	f.Add([]byte("\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09"), bytes.Repeat([]byte{3, 'a', 'b', 'c'}, 50))
	f.Add([]byte{4, 4, 4}, []byte{255, 1, 2})
	f.Add([]byte{6, 200, 9, 9}, []byte("short"))
	f.Fuzz(func(t *testing.T, ops, data []byte) {
		var memory Reader
		memory.ResetBytes(data)
		stream := NewReader(iotest.HalfReader(bytes.NewReader(data)))
		for i, op := range ops {
			n := int(op) * 3
			a, b := step(&memory, op%10, n), step(stream, op%10, n)
			if !bytes.Equal(a, b) {
				t.Fatalf("op %d (%d): %x in place, %x from a stream", i, op%10, a, b)
			}
			if memory.Offset() != stream.Offset() || memory.Offset() > int64(len(data)) {
				t.Fatalf("op %d: offset %d and %d of %d", i, memory.Offset(), stream.Offset(), len(data))
			}
			ea, eb := memory.Err(), stream.Err()
			if (ea == nil) != (eb == nil) || ea != nil && ea.Error() != eb.Error() {
				t.Fatalf("op %d: %v and %v", i, ea, eb)
			}
			var e *Error
			if ea != nil && (!errors.As(ea, &e) || !errors.Is(ea, io.EOF) && !errors.Is(ea, io.ErrUnexpectedEOF) && !errors.Is(ea, ErrTooLong)) {
				t.Fatalf("op %d: error of unknown kind: %v", i, ea)
			}
		}
	})
}

func step(r *Reader, op byte, n int) []byte {
	switch op {
	case 0:
		return []byte{r.Byte()}
	case 1:
		v := r.BE16()
		return []byte{byte(v >> 8), byte(v)}
	case 2:
		v := r.BE32()
		return []byte{byte(v >> 24), byte(v)}
	case 3:
		v := r.BE64()
		return []byte{byte(v >> 56), byte(v)}
	case 4:
		return []byte(r.CountedString())
	case 5:
		p := make([]byte, n)
		if r.ReadFull(p) != nil {
			return nil
		}
		return p
	case 6:
		return r.Bytes(uint64(n), 500)
	case 7:
		return bytes.Clone(r.Peek(n))
	case 8:
		if n > 300 {
			return nil // in place, any length is one view
		}
		return bytes.Clone(r.Next(n))
	default:
		r.Skip(uint64(n))
		return nil
	}
}

// FuzzWriter puts the same pieces through each kind of destination.
func FuzzWriter(f *testing.F) {
	f.Add([]byte{1, 2, 3, 200, 255, 0, 7, 100})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var direct, copied bytes.Buffer
		var gathered vectored
		var want []byte
		writers := []*Writer{NewWriter(&direct), NewWriter(plain{&copied}), NewWriter(&gathered)}
		data := make([]byte, 1<<18)
		for i := range data {
			data[i] = byte(i >> 8)
		}
		for i, op := range ops {
			p := data[i : i+int(op)*int(op)]
			for _, w := range writers {
				switch op % 4 {
				case 0:
					w.Write(p)
				case 1:
					w.WriteRef(p)
				case 2:
					w.WriteString(string(p))
				case 3:
					w.PutBE16(uint16(op))
				}
			}
			if op%4 == 3 {
				p = []byte{0, op}
			}
			want = append(want, p...)
		}
		for i, w := range writers {
			if err := w.Flush(); err != nil || w.Transferred() != int64(len(want)) {
				t.Fatalf("writer %d: %d of %d bytes, %v", i, w.Transferred(), len(want), err)
			}
		}
		if !bytes.Equal(direct.Bytes(), want) || !bytes.Equal(copied.Bytes(), want) || !bytes.Equal(gathered.Bytes(), want) {
			t.Fatal("order lost")
		}
	})
}
