package qemufile

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"
)

func TestAnEndAndAFailureAreToldApart(t *testing.T) {
	boom := errors.New("boom")
	memory := new(Reader)
	memory.ResetBytes([]byte{1})
	for _, x := range []struct {
		name string
		r    *Reader
		want error
	}{
		{"an end", NewReader(bytes.NewReader([]byte{1})), nil},
		{"an end that comes with the last byte", NewReader(iotest.DataErrReader(bytes.NewReader([]byte{1}))), nil},
		{"an end of memory", memory, nil},
		{"a source that fails", NewReader(io.MultiReader(bytes.NewReader([]byte{1}), iotest.ErrReader(boom))), boom},
		{"an end that is none", NewReader(io.MultiReader(bytes.NewReader([]byte{1}), iotest.ErrReader(io.ErrUnexpectedEOF))), io.ErrUnexpectedEOF},
	} {
		t.Run(x.name, func(t *testing.T) {
			if err := x.r.Failure(); err != nil || x.r.Offset() != 0 || x.r.Err() != nil {
				t.Errorf("before the last byte: %v at %d, %v", err, x.r.Offset(), x.r.Err())
			}
			if b := x.r.Byte(); b != 1 {
				t.Errorf("the byte was taken: %d, %v", b, x.r.Err())
			}
			for range 2 {
				if err := x.r.Failure(); !errors.Is(err, x.want) || (err == nil) != (x.want == nil) {
					t.Errorf("behind it: %v, want %v", err, x.want)
				}
			}
			var e *Error
			if err := x.r.Failure(); x.want != nil && (!errors.As(err, &e) || e.Offset != 1) {
				t.Errorf("it does not say where: %v", err)
			}
		})
	}
	// A stream that ends within a value has failed: only between two values may it end.
	cut := NewReader(bytes.NewReader([]byte{1}))
	if cut.BE32(); !errors.Is(cut.Failure(), io.ErrUnexpectedEOF) {
		t.Errorf("within a value: %v", cut.Failure())
	}
	// A stream that a caller has refused has failed, though more of it could be read.
	refused := NewReader(bytes.NewReader([]byte{1}))
	if refused.Fail(boom); !errors.Is(refused.Failure(), boom) {
		t.Errorf("refused: %v", refused.Failure())
	}
}
