package vmstate

import (
	"errors"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// What undoes a load is kept until Commit or Rollback: a stream that brings a device again and
// again does not have it grow without a bound, and is undone as any other.
func TestADeviceComesSoManyTimesFromOneCommitToTheNext(t *testing.T) {
	const most = 16 // as the comment of Load says
	reg, _, c := fuzzed(t)
	times := func(n int) []byte {
		return written(t, func(w *qemufile.Writer) {
			for i := range n {
				Header{Type: SectionFull, ID: 3, Name: "c", Version: 1}.Put(w)
				w.PutBE32(uint32(100 + i))
				PutFooter(w, 3)
			}
			PutEOF(w)
		})
	}
	load := func(n int) error { return reg.Load(reader(times(n)), nil) }
	for range 3 { // a refusal is forgotten
		var se *SectionError
		if err := load(most + 1); !errors.Is(err, ErrBounds) || !errors.As(err, &se) || se.Section.Name != "c" || c.N != 1 {
			t.Fatalf("%d times: %v, and it is %d", most+1, err, c.N)
		}
	}
	for range 2 {
		if err := load(most / 2); err != nil {
			t.Fatal(err)
		}
	}
	if err := reg.Commit(); err != nil || c.N != 100+most/2-1 {
		t.Errorf("%d times in two loads: %v, and it is %d", most, err, c.N)
	}
	if err := load(most); err != nil {
		t.Errorf("after the commit: %v", err)
	}
	reg.Rollback()
	if err := load(most); err != nil {
		t.Errorf("after a rollback: %v", err)
	}
}

// An idle log gives back what its largest load took.
func TestTheMemoryOfALargeLoadIsGivenBack(t *testing.T) {
	var u undoLog
	var v uint8
	for range maxKept/32 + 1 {
		u.add(&v, 0)
		u.bytes(nil)
	}
	u.forget()
	if cap(u.entries) > maxKept/32 || cap(u.spans) > maxKept/32 {
		t.Errorf("room for %d entries and %d spans is kept", cap(u.entries), cap(u.spans))
	}
}
