package mapping

import "testing"

func TestMemoryIsZeroedAndWritable(t *testing.T) {
	p, err := New(1<<20 + 1)
	if err != nil {
		t.Fatal(err)
	}
	if len(p) != 1<<20+1 {
		t.Fatalf("%d bytes", len(p))
	}
	for i, b := range p {
		if b != 0 {
			t.Fatalf("byte %d is %#x", i, b)
		}
	}
	p[0], p[len(p)-1] = 1, 2
	if err := Free(p); err != nil {
		t.Fatal(err)
	}
}

func TestNothingIsMappedForNothing(t *testing.T) {
	p, err := New(0)
	if p != nil || err != nil {
		t.Fatalf("%v, %v", p, err)
	}
	if err := Free(nil); err != nil {
		t.Fatal(err)
	}
}

func TestNegativeSizeGivesAnError(t *testing.T) {
	if _, err := New(-1); err == nil {
		t.Error("a negative size was mapped")
	}
}
