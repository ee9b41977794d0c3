package device

import (
	"bytes"
	"errors"
	"strings"
	"sync"
	"testing"
)

// grow makes the store longer.
func (s *store) grow(size int) { s.data = append(s.data, make([]byte, size-len(s.data))...) }

// capacity returns how many sectors the driver reads that its disk has.
func (r *blkRig) capacity() uint64 {
	return uint64(r.in(regConfig, 4)) | uint64(r.in(regConfig+4, 4))<<32
}

// wantTold fails unless the driver reads so many sectors, and has been told that they have become more.
func (r *blkRig) wantTold(why string, sectors uint64, told bool) {
	r.t.Helper()
	if n := r.capacity(); n != sectors {
		r.t.Errorf("%s: the disk has %d sectors, want %d", why, n, sectors)
	}
	level, _ := r.raised()
	if isr := r.in(regISR, 1); (isr == isrConfig) != told || level != told {
		r.t.Errorf("%s: interrupt status %d, line %v", why, isr, level)
	}
}

const driverReady = 1 | 2 | statusDriverOK

func TestAGuestIsToldThatItsDiskHasBecomeLonger(t *testing.T) {
	r := newBlkRig(t, 8*SectorSize)
	r.out(regStatus, 1, driverReady)
	r.request(blkIn, 8, part{testData, SectorSize, true})
	r.wantStatus("a sector that is not there yet", blkIOErr, 1)
	r.in(regISR, 1)
	r.disk.grow(16 * SectorSize)
	r.wantTold("before anybody has said it", 8, false)
	must(t, r.blk.Grown(r.gate, 16*SectorSize))
	r.wantTold("a disk that has grown", 16, true)
	must(t, r.blk.Grown(r.gate, 16*SectorSize))
	r.wantTold("the same length again", 16, false)
	r.request(blkIn, 15, part{testData, SectorSize, true})
	r.wantStatus("the last sector", blkOK, SectorSize+1)
	r.request(blkIn, 16, part{testData, SectorSize, true})
	r.wantStatus("the sector after the last", blkIOErr, 1)
}

// A driver that is about to set the disk up has read its length, perhaps, and is told when it can hear
// it. Where there is no driver the next one finds the length.
func TestADriverIsToldOfALongerDiskWhenItHasSetItUp(t *testing.T) {
	r := newBlkRig(t, 8*SectorSize)
	r.disk.grow(24 * SectorSize)
	must(t, r.blk.Grown(r.gate, 16*SectorSize))
	r.wantTold("no driver", 16, false)
	r.out(regStatus, 1, 1|2)
	must(t, r.blk.Grown(r.gate, 24*SectorSize))
	r.wantTold("a driver that sets the disk up", 16, false)
	r.out(regStatus, 1, driverReady)
	r.wantTold("a driver that has set the disk up", 24, true)

	r.disk.grow(32 * SectorSize)
	r.out(regStatus, 1, 1|2)
	must(t, r.blk.Grown(r.gate, 32*SectorSize))
	r.out(regStatus, 1, 0)
	r.wantTold("a driver that has gone", 32, false)
}

// While the guest stands still nothing of its device changes: it is told when it goes on, also where it goes
// on from a state of before.
func TestAGuestThatStandsStillIsToldOfALongerDiskWhenItGoesOn(t *testing.T) {
	r := newBlkRig(t, 8*SectorSize)
	r.out(regStatus, 1, driverReady)
	before := stream(t, r.blk)
	r.disk.grow(16 * SectorSize)
	must(t, r.gate.Close(t.Context()))
	must(t, r.blk.Grown(r.gate, 16*SectorSize))
	if !bytes.Equal(stream(t, r.blk), before) {
		t.Error("the state of a guest that stands still has changed")
	}
	r.wantTold("it stands still", 8, false)
	for _, why := range []string{"it goes on", "it is put back, and goes on"} {
		r.gate.Open()
		r.blk.Opened()
		r.wantTold(why, 16, true)
		must(t, r.gate.Close(t.Context()))
		must(t, load(r.blk, before))
		r.wantTold("it is put back", 8, false)
	}
}

// The copy of another host becomes longer first, and the guest there has the length of which it was told
// where it comes from.
func TestTheLengthOfADiskIsOfTheStateThatIsLoaded(t *testing.T) {
	from, to := newBlkRig(t, 8*SectorSize), newBlkRig(t, 8*SectorSize)
	for _, r := range []*blkRig{from, to} {
		r.out(regStatus, 1, driverReady)
		r.disk.grow(16 * SectorSize)
	}
	short := stream(t, from.blk)
	must(t, from.blk.Grown(from.gate, 16*SectorSize))
	long := stream(t, from.blk)
	if len(short) != len(long) || bytes.Equal(short, long) {
		t.Fatal("the length is not in the state, or makes it longer")
	}
	must(t, load(to.blk, short))
	to.blk.Opened()
	to.wantTold("a state of before", 8, false)
	must(t, load(to.blk, long))
	to.blk.Opened()
	to.wantTold("a state in which the guest is told and has not looked", 16, true)
	to.request(blkIn, 15, part{testData, SectorSize, true})
	to.wantStatus("the last sector", blkOK, SectorSize+1)
	must(t, load(to.blk, short))
	must(t, to.blk.Grown(to.gate, 16*SectorSize))
	to.wantTold("the host goes on with the guest", 16, true)
}

func TestALengthThatADiskDoesNotHaveIsRefusedInWords(t *testing.T) {
	r, short := newBlkRig(t, 16*SectorSize), newBlkRig(t, 8*SectorSize)
	before, its := stream(t, r.blk), stream(t, short.blk)
	for size, words := range map[int64]string{
		17 * SectorSize:   "cannot have 8704 bytes of a disk of 8192",
		15 * SectorSize:   "does not become one of 7680",
		-1:                "does not become one of -1",
		1<<63 - 1:         "cannot have",
		16*SectorSize - 1: "does not become one of 8191",
	} {
		if err := r.blk.Grown(r.gate, size); !errors.Is(err, ErrDiskSize) || !strings.Contains(err.Error(), words) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if !bytes.Equal(stream(t, r.blk), before) {
		t.Error("a length that was refused has changed the disk")
	}
	err := load(short.blk, before)
	wantTyped(t, err)
	if err == nil || !strings.Contains(err.Error(), "the guest's disk has 16 sectors of 512 bytes, the one here 8") {
		t.Error("a guest with a longer disk is taken:", err)
	}
	if !bytes.Equal(stream(t, short.blk), its) {
		t.Error("half of it was taken")
	}
	must(t, load(r.blk, its)) // a copy that is longer already
}

// The guest reads, pauses come and go, and the disk grows all the while: each request is answered by one
// length or the next, and in the end the guest has been told of the last.
func TestADiskGrowsWhileItServesItsGuest(t *testing.T) {
	const most = 200
	r := newBlkRig(t, most*SectorSize)
	r.disk.data = r.disk.data[:SectorSize]
	r.blk = NewBlk(r.disk, 2, "grows", r.memory(), r.board.line, nil)
	r.ring = newRing(r.board, r.blk, 0, 0x10000)
	r.out(regStatus, 1, driverReady)
	r.disk.data = r.disk.data[:most*SectorSize]
	run(r.blk.Work, r.gate, func() {
		var others sync.WaitGroup
		others.Go(func() {
			for n := int64(2); n <= most; n++ {
				if err := r.blk.Grown(r.gate, n*SectorSize); err != nil {
					t.Error(err)
				}
			}
		})
		others.Go(func() {
			for range most {
				if err := r.gate.Close(t.Context()); err != nil {
					t.Error(err)
				}
				r.gate.Open()
				r.blk.Opened()
			}
		})
		for was := uint64(1); was < most; {
			n := r.capacity()
			if n < was || n > most {
				t.Errorf("the disk has %d sectors after it had %d", n, was)
				break
			}
			was = n
			r.out(regStatus, 1, driverReady)
		}
		others.Wait()
	})
	r.wantTold("in the end", most, true)
}
