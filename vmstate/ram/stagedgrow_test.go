package ram

import (
	"fmt"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// longer returns a guest that has a part of its memory only. When it is told that the block is
// longer, it has the rest, all zeros.
func longer(t testing.TB, used, all int) *guest {
	t.Helper()
	b := pages(t, "ram", all)
	b.Used, b.Resizable = uint64(used)*PageSize, true
	for i := range used {
		copy(b.Host[i*PageSize:], page(byte(100+i)))
	}
	for i := used; i < all; i++ {
		copy(b.Host[i*PageSize:], page(0xfe)) // whoever reads it finds no guest's
	}
	told := used
	b.Resize = func(n uint64) error {
		if now := int(n / PageSize); now > told {
			clear(b.Host[told*PageSize : now*PageSize])
		}
		told = int(n / PageSize)
		return nil
	}
	return newGuest(t, b)
}

// A block that is longer at the primary: the guest's memory beyond what it has is
// touched after it was told, and in no way before.
func TestABlockThatGrowsIsNotTouchedBeforeTheGuestHears(t *testing.T) {
	const used, all = 2, 7
	pageOf := func(w *qemufile.Writer, i uint64, p []byte) {
		w.PutBE64(i*PageSize | flagPage)
		w.PutCountedString("ram")
		w.Write(p)
	}
	list := func(w *qemufile.Writer) {
		w.PutBE64(all*PageSize | flagMemSize)
		w.PutCountedString("ram")
		w.PutBE64(all * PageSize)
	}
	grown := body(t, func(w *qemufile.Writer) {
		list(w)
		pageOf(w, 0, page(1))
		pageOf(w, 2, page(2))
		w.PutBE64(3*PageSize | flagZero)
		w.PutCountedString("ram")
		w.PutByte(0)
		w.PutBE64(4*PageSize | flagZero)
		w.PutCountedString("ram")
		w.PutByte(7)
		w.PutBE64(5*PageSize | flagXBZRLE)
		w.PutCountedString("ram")
		w.Write([]byte{1, 0, 4, 5, 2, 0xaa, 0xbb})
		// This page came, and is zeros again.
		pageOf(w, 6, page(5))
		w.PutBE64(6*PageSize | flagZero)
		w.PutCountedString("ram")
		w.PutByte(0)
		w.PutBE64(flagEOS)
	})
	delta := make([]byte, PageSize)
	delta[5], delta[6] = 0xaa, 0xbb
	want := [][]byte{slices.Concat(page(1), page(101), page(2), page(0), page(7), delta, page(0))}
	for _, resent := range []bool{true, false} {
		t.Run(fmt.Sprintf("resent %v", resent), func(t *testing.T) {
			g := longer(t, used, all)
			c := kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, g, CacheConfig{})
			c.only.resent = resent
			if err := loadBytes(c, grown); err != nil {
				t.Fatal(err)
			}
			if !resent {
				if err := c.KeepCopy(); err != nil {
					t.Fatal(err)
				}
			}
			for i := used; i < all; i++ {
				if p := g.blocks[0].Host[i*PageSize:][:PageSize]; !slices.Equal(p, page(0xfe)) {
					t.Fatalf("page %d was written before the guest heard of it", i)
				}
			}
			flush(t, c)
			wantMemory(t, "after the first Flush", g, want)
			if n := c.Stats().Flushed; n != 6 {
				t.Errorf("Flushed = %d, want 6", n)
			}
			if resent {
				return
			}
			for i := range all { // all rolls back
				g.write(0, i*PageSize, 200)
			}
			flush(t, c)
			wantMemory(t, "rolled back", g, want)
			// A difference is from what is there.
			if err := loadBytes(c, unhex(t, "0000000000006040 03 72616d 01 0004 0502aabb"+eosHex)); err != nil {
				t.Fatal(err)
			}
			flush(t, c)
			after := [][]byte{slices.Concat(want[0][:6*PageSize], delta)}
			wantMemory(t, "after a difference", g, after)
		})
	}
	t.Run("at a checkpoint", func(t *testing.T) {
		g := longer(t, used, all)
		c := kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, g, CacheConfig{})
		flush(t, c)
		dirtyList(t, c)
		if err := loadBytes(c, grown); err != nil {
			t.Fatal(err)
		}
		flush(t, c)
		wantMemory(t, "after Flush", g, want)
	})
}
