package damage

import (
	"bytes"
	"maps"
	"slices"
	"testing"
)

func numbered(n int, cuts ...int) Input {
	in := Input{Bytes: make([]byte, n), Cuts: cuts}
	for i := range in.Bytes {
		in.Bytes[i] = byte(i)
	}
	return in
}

func TestASeedGivesTheSameCopies(t *testing.T) {
	in, other := numbered(300, 0, 7, 100, 200, 250), numbered(50)
	first := maps.Collect(Copies(1, 500, in, other))
	again := maps.Collect(Copies(1, 500, in, other))
	if len(first) != 500 || !maps.EqualFunc(first, again, bytes.Equal) {
		t.Errorf("%d copies, and then %d", len(first), len(again))
	}
	if !bytes.Equal(in.Bytes, numbered(300).Bytes) || !bytes.Equal(other.Bytes, numbered(50).Bytes) {
		t.Error("what was copied has changed")
	}
}

func TestDamageIsOfEachKind(t *testing.T) {
	in, other := numbered(200, 0, 50, 100, 150), Input{Bytes: bytes.Repeat([]byte{250}, 60)}
	part := func(i int) []byte { return in.Bytes[50*i : 50*i+50] }
	want := map[string][]byte{
		"a record is missing":     slices.Concat(part(0), part(2), part(3)),
		"a record comes again":    slices.Concat(part(0), part(1), part(1), part(2), part(3)),
		"records changed places":  slices.Concat(part(0), part(2), part(1), part(3)),
		"it ends with a record":   in.Bytes[:100],
		"it goes on as the other": slices.Concat(part(0), other.Bytes),
	}
	flipped, longest := 0, 0
	for _, p := range Copies(3, 20000, in, other) {
		for what, w := range want {
			if bytes.Equal(p, w) {
				delete(want, what)
			}
		}
		if len(p) == len(in.Bytes) && bytes.Count(p, in.Bytes[:100]) == 1 {
			flipped++
		}
		longest = max(longest, len(p))
	}
	if len(want) > 0 || flipped == 0 || longest > 1000 {
		t.Errorf("never: %q; %d with the first half, at most %d bytes", slices.Collect(maps.Keys(want)), flipped, longest)
	}
}

func TestWhatHasNoBytesIsDamagedToo(t *testing.T) {
	for _, in := range []Input{{}, numbered(1), numbered(3, 0), numbered(3, 0, 3)} {
		for range Copies(1, 2000, in, Input{}) {
		}
	}
}
