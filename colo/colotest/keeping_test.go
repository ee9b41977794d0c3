package colotest

import (
	"testing"

	"github.com/gocolo/lockstep/vmstate/ram"
)

// keeping is a guest's log that leaves named pages writable, as KVM's does, and does it
// wrong where fault says so.
type keeping struct {
	*VM
	fault keepingFault
	named ram.Bitmap
	open  ram.Bitmap // pages that are writable, whose writes nobody sees
	lost  ram.Bitmap // pages whose writes until the next ReadDirty it does not tell
}

type keepingFault int

const (
	neverAgain  keepingFault = iota + 1 // reports a writable page when it becomes so, and then not
	keepsAll                            // and leaves also pages writable that were not named
	keepsOn                             // when none is named any more
	owesNothing                         // for what was writable when none is named any more
)

func newKeeping(g *VM, fault keepingFault) *keeping {
	return &keeping{VM: g, fault: fault, open: ram.NewBitmap(64 * len(g.dirty))}
}

func (k *keeping) KeepDirty(block string, pages []uint64) bool {
	if block != Block {
		return false
	}
	switch {
	case k.fault == keepsOn && pages == nil:
		return false
	case k.fault == owesNothing && pages == nil:
		k.lost, k.open = k.open, make(ram.Bitmap, len(k.open))
	}
	k.named = append(k.named[:0], pages...)
	return pages != nil
}

func (k *keeping) ReadDirty(block string, bitmap []uint64) error {
	written := make(ram.Bitmap, len(bitmap))
	if err := k.VM.ReadDirty(block, written); err != nil {
		return err
	}
	for i, w := range written {
		switch k.fault {
		case neverAgain:
			bitmap[i] |= w &^ k.open[i]
		default:
			bitmap[i] |= w | k.open[i]
		}
		k.open[i] |= w
		named := uint64(0)
		if i < len(k.named) {
			named = k.named[i]
		}
		if k.lost != nil {
			bitmap[i] &^= k.lost[i]
		}
		if k.fault != keepsAll || k.named == nil {
			k.open[i] &= named
		}
	}
	k.lost = nil
	return nil
}

func TestALogThatLeavesPagesWritableConforms(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("short: two other guests conform, and each fault of such a log is found")
	}
	TestVM(t, func(t *testing.T) Host {
		g := running(t, VMConfig{Touch: 4})
		h := hostOf(g)
		h.Log = newKeeping(g, 0)
		return h
	})
}
