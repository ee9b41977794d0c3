package replication

import (
	"testing"
)

func TestBitmapRuns(t *testing.T) {
	const size = 200*ChunkSize + 512
	b := NewBitmap(size)
	if !b.Empty() || b.Bytes() != 0 {
		t.Error("a new bitmap is not empty")
	}
	b.Set(63*ChunkSize+1, 2*ChunkSize)
	b.Set(size-1, 1)
	if n := b.Bytes(); n != 3*ChunkSize+512 {
		t.Errorf("%d bytes", n)
	}
	if at, n := b.next(0, 2*ChunkSize); at != 63*ChunkSize || n != 2*ChunkSize {
		t.Errorf("run of %d at %d", n, at)
	}
	if at, n := b.next(66*ChunkSize, 1<<40); at != 200*ChunkSize || n != 512 {
		t.Errorf("run of %d at %d", n, at)
	}
	if n, set := b.run(63*ChunkSize+5, 10*ChunkSize); n != 3*ChunkSize-5 || !set {
		t.Errorf("run %d %v", n, set)
	}
	b.Clear(0, size)
	if !b.Empty() {
		t.Error("not empty after Clear")
	}
	wantErr(t, "or", b.Or(NewBitmap(1)), ErrSize)
}
