package main

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
)

// The guest is told of a disk that becomes longer, by the host that has it, and by the one that goes on
// with it.
func TestADiskGrowsWhileItsGuestIsProtected(t *testing.T) {
	w := newSimWorld(t)
	at := "unix:" + filepath.Join(socket.Dir(t), "a")
	b := w.start("b", modeSecondary)
	a := w.start("a", modePrimary, "-qmp", at)
	w.inStep(a)
	w.asks(at, "block_resize", map[string]any{"device": "disk", "size": 2 * simDisk}, false)
	told := fmt.Sprintf(`"name":"grown","text":"the guest's disk has %d bytes"`, 2*simDisk)
	w.hears(a, told)
	if n := a.machine.told.Load(); n != 2*simDisk {
		t.Errorf("the guest of a was told of %d bytes", n)
	}
	w.moreLeaves(a)
	w.kill(a)
	w.hears(b, phase("alone"))
	w.hears(b, told)
	if n := b.machine.told.Load(); n != 2*simDisk {
		t.Errorf("the guest of b was told of %d bytes", n)
	}
	w.moreLeaves(b)
	w.judge()
}
