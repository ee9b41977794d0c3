package oracle

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/guest"
)

var smallDisk = guest.Params{VCPUs: 2, Pages: 8, Touch: 2, TSCPerMille: 300, Seed: 7, Disk: 64 << 10, DiskEvery: 3}

// lived has the frames, the memory and the disk of a guest after a number of rounds of each
// vCPU.
type lived struct {
	frames    [][]byte
	histories []History
	disk      []byte
	before    []byte // the disk without the last write
}

func live(t *testing.T, p guest.Params, rounds int) lived {
	t.Helper()
	var l lived
	l.disk = make([]byte, p.Disk)
	clock := uint64(1000)
	g, err := colotest.NewVM(colotest.VMConfig{
		VCPUs: p.VCPUs, Pages: p.Pages, Touch: p.Touch, TSCPerMille: p.TSCPerMille, Seed: p.Seed, Disk: p.Disk, DiskEvery: p.DiskEvery,
		Output: func(b []byte) error { l.frames = append(l.frames, bytes.Clone(b)); return nil },
		Write: func(b []byte, off int64, _ bool) error {
			l.before = bytes.Clone(l.disk)
			copy(l.disk[off:], b)
			return nil
		},
		TSC: func() uint64 { clock += 17; return clock },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := g.Resume(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := g.Step(rounds); err != nil {
		t.Fatal(err)
	}
	if l.histories, err = Remembered(g.Memory(), p.VCPUs); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l lived) judged(t *testing.T, p guest.Params) Verdict {
	t.Helper()
	o, err := New(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range l.frames {
		o.Frame(f)
	}
	o.Finish(l.histories)
	if err := o.FinishDisk(l.histories, bytes.NewReader(l.disk)); err != nil {
		t.Fatal(err)
	}
	return o.Verdict
}

func TestADiskThatTheMemoryHasWrittenIsClean(t *testing.T) {
	for _, rounds := range []int{1, 2, 3, 4, 301} {
		v := live(t, smallDisk, rounds).judged(t, smallDisk)
		if !v.Clean() || v.DiskBlocks != uint64(2*(rounds/3)) {
			t.Errorf("%d rounds: %+v", rounds, v)
		}
	}
}

func TestARoundMayHaveWrittenBeforeItsFrameLeaves(t *testing.T) {
	l := live(t, smallDisk, 300)
	l.frames = l.frames[:len(l.frames)-1]
	if v := l.judged(t, smallDisk); !v.Clean() || v.DiskBlocks != 200 {
		t.Errorf("written: %+v", v)
	}
	// Or not: the guest was stopped between its memory and its disk.
	l.disk = l.before
	l.histories[1].Written -= 3
	if v := l.judged(t, smallDisk); !v.Clean() || v.DiskBlocks != 199 {
		t.Errorf("not written: %+v", v)
	}
}

func TestADiskThatLostAWriteIsNoticed(t *testing.T) {
	l := live(t, smallDisk, 300)
	l.disk = l.before
	if v := l.judged(t, smallDisk); v.Clean() || v.DiskLost == 0 || v.DiskCorrupted != 0 || !strings.Contains(v.First, "round 300") {
		t.Errorf("%+v", v)
	}
}

func TestADiskThatIsAheadOfMemoryIsNoticed(t *testing.T) {
	p := smallDisk
	p.TSCPerMille = 0
	l := live(t, p, 300)
	l.disk = live(t, p, 303).disk
	if v := l.judged(t, p); v.Clean() || v.DiskCorrupted == 0 || v.DiskLost != 0 {
		t.Errorf("%+v", v)
	}
}

func TestAGuestThatGoesOnBeforeItsWriteIsDoneIsNoticed(t *testing.T) {
	l := live(t, smallDisk, 300)
	l.histories[0].Written -= 3
	if v := l.judged(t, smallDisk); v.Clean() || v.DiskLost != 1 {
		t.Errorf("%+v", v)
	}
}

func TestATornOrForeignSectorIsNoticed(t *testing.T) {
	whole := live(t, smallDisk, 300)
	other := smallDisk
	other.Seed++
	for name, change := range map[string]func(disk []byte){
		"torn":     func(d []byte) { copy(d[256:512], make([]byte, 256)) },
		"one bit":  func(d []byte) { d[511] ^= 1 },
		"foreign":  func(d []byte) { copy(d, live(t, other, 300).disk[:512]) },
		"too late": func(d []byte) { d[0]++ },
	} {
		l := whole
		l.disk = bytes.Clone(whole.disk)
		at := 0
		for guest.SectorRound(l.disk[at:]) == 0 {
			at += guest.SectorSize
		}
		change(l.disk[at:])
		if v := l.judged(t, smallDisk); v.Clean() || v.DiskCorrupted+v.DiskLost != 1 {
			t.Errorf("%s: %+v", name, v)
		}
	}
	l := whole
	l.disk = l.disk[:len(l.disk)-1]
	o, err := New(smallDisk)
	if err != nil {
		t.Fatal(err)
	}
	if o.FinishDisk(l.histories, bytes.NewReader(l.disk)) == nil {
		t.Error("a disk that is too short was read")
	}
}
