package job

import (
	"errors"
	"math"
	"slices"
	"testing"
)

func TestARecordReadsAsItWasWritten(t *testing.T) {
	for _, r := range []Record{
		{},
		{Seq: 7, Counter: math.MaxUint64, Pass: 3, Integer: 1, Double: math.Float64bits(-2.5), Synced: 12, Chunks: 9, Last: true},
	} {
		line, err := r.AppendText(nil)
		if err != nil {
			t.Fatal(err)
		}
		var got Record
		if err := got.UnmarshalText(line); err != nil || got != r {
			t.Errorf("%q: got %+v, %v", line, got, err)
		}
	}
}

func TestADamagedRecordIsRefused(t *testing.T) {
	line, err := Record{Seq: 70, Counter: 1}.AppendText(nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range len(line) - 1 {
		damaged := slices.Clone(line)
		damaged[i] ^= 1
		if err := new(Record).UnmarshalText(damaged); !errors.Is(err, ErrRecord) {
			t.Errorf("%q: %v", damaged, err)
		}
		if err := new(Record).UnmarshalText(line[:i]); !errors.Is(err, ErrRecord) {
			t.Errorf("%q: %v", line[:i], err)
		}
	}
}

func TestAChangedBitChangesEveryLaterPass(t *testing.T) {
	right, wrong := NewChecksum(), NewChecksum()
	right.Next()
	wrong.Next()
	if right.Integer != wrong.Integer || right.Double != wrong.Double {
		t.Fatal("two computations differ from the start")
	}
	wrong.words[words/2] ^= 1 << 40
	for range 3 {
		right.Next()
		wrong.Next()
		if right.Integer == wrong.Integer || right.Double == wrong.Double {
			t.Errorf("pass %d: integer %x and %x, double %x and %x", right.Pass, right.Integer, wrong.Integer, right.Double, wrong.Double)
		}
	}
	wrong = NewChecksum()
	wrong.doubles[90] += 4 * (math.Nextafter(wrong.doubles[90], 1) - wrong.doubles[90])
	right = NewChecksum()
	right.Next()
	wrong.Next()
	for range 60 { // it grows by about two at each pass
		right.Next()
		wrong.Next()
	}
	if right.Double == wrong.Double {
		t.Error("a change of a double's last bits was lost")
	}
	if v := math.Float64frombits(right.Double); math.IsNaN(v) || math.IsInf(v, 0) {
		t.Errorf("the doubles came to %v", v)
	}
}

func TestEntriesAndChunksSayWhichTheyAre(t *testing.T) {
	for n := range uint64(300) {
		e := AppendEntry(nil, n)
		if len(e) != EntrySize || !CheckEntry(e, n) || CheckEntry(e, n+1) {
			t.Fatalf("entry %d", n)
		}
		e[EntrySize-1]++
		if CheckEntry(e, n) {
			t.Fatalf("entry %d with a wrong last byte", n)
		}
		if c := AppendChunk(nil, n); len(c) != ChunkSize || slices.Equal(c, AppendChunk(nil, n+1)) {
			t.Fatalf("chunk %d", n)
		}
	}
}
