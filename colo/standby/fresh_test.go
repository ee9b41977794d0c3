package standby_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

func TestZeroPagesThatAreZerosAlreadyAreLeftOut(t *testing.T) {
	g := newViewed(t)
	g.checkpoint(0, slices.Repeat([]byte{0}, 256)...)
	g.checkpoint(10, 1, 2, 3)
	g.checkpoint(11, 0)
	whole := g.put()

	used := ram.NewBitmap(256)
	for _, i := range []int{10, 20, 255} {
		used.Set(i)
	}
	const record = 8 + 1 // of a zero page, beside the first, which names its block
	for _, c := range []struct {
		name string
		used ram.Bitmap
		less int // zero pages
	}{
		{"none is used", ram.NewBitmap(256), 254},
		{"three are", used, 252},
		{"it is not known", nil, 0},
		{"what is said is of another length", ram.NewBitmap(512), 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			calls := 0
			err := g.PutFresh(qemufile.NewWriter(&out), func(block string, pages int) ram.Bitmap {
				calls++
				if block != "ram" || pages != 256 {
					t.Errorf("asked of %d pages of %q", pages, block)
				}
				if out.Len() < 40 || !bytes.HasPrefix(whole, out.Bytes()) {
					t.Errorf("asked when %d bytes had been written", out.Len())
				}
				return slices.Clone(c.used)
			})
			if err != nil || calls != 1 {
				t.Fatal(calls, err)
			}
			if n := len(whole) - out.Len(); n != c.less*record {
				t.Errorf("%d bytes less, not %d", n, c.less*record)
			}
			// A guest whose memory was all zeros is the same after it has read this.
			there := standby.New(standby.Config{})
			defer there.Close()
			if err := there.Read(qemufile.NewReader(&out)); err != nil {
				t.Fatal(err)
			}
			var again bytes.Buffer
			if err := there.Put(qemufile.NewWriter(&again)); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(again.Bytes(), whole) {
				t.Error("it is another guest")
			}
		})
	}
}
