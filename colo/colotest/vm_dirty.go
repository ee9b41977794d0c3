package colotest

import (
	"fmt"
	"sync/atomic"
)

// ReadDirty implements ram.DirtyLog.
func (g *VM) ReadDirty(block string, bitmap []uint64) error {
	if g.kernel != nil {
		return g.kernel.ReadDirty(block, bitmap)
	}
	if block != Block {
		return fmt.Errorf("colotest: no RAM block %q", block)
	}
	if len(bitmap) < len(g.dirty) {
		return fmt.Errorf("colotest: bitmap of %d words for %d", len(bitmap), len(g.dirty))
	}
	for i := range g.dirty {
		if atomic.LoadUint64(&g.dirty[i]) != 0 {
			bitmap[i] |= atomic.SwapUint64(&g.dirty[i], 0)
		}
	}
	return nil
}

// StartDirtyLog implements ram.LogSwitch. The log of a new guest is on.
func (g *VM) StartDirtyLog() error {
	if g.kernel != nil {
		return g.kernel.StartDirtyLog()
	}
	g.logs.Store(true)
	return nil
}

// StopDirtyLog implements ram.LogSwitch.
func (g *VM) StopDirtyLog() error {
	if g.kernel != nil {
		return g.kernel.StopDirtyLog()
	}
	g.logs.Store(false)
	return nil
}

// ForgetDirty implements ram.Forgetter: a tracked guest's log forgets what was written
// until now. The marks of vCPUs stay, since they mark nothing but what rounds wrote.
func (g *VM) ForgetDirty(block string) {
	if g.kernel != nil {
		g.kernel.ForgetDirty(block)
	}
}

// mark sets the dirty bit of a page that has been written.
func (g *VM) mark(page uint32) {
	word, bit := &g.dirty[page/64], uint64(1)<<(page%64)
	if atomic.LoadUint64(word)&bit == 0 {
		atomic.OrUint64(word, bit)
	}
}
