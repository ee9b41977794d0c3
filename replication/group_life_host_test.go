package replication

import (
	"bytes"
	"math/rand/v2"
	"sync/atomic"
	"syscall"
)

// images is the content of all disks of a guest.
type images [lifeDisks][]byte

func (a images) equal(b images) bool {
	for i := range a {
		if a[i] == nil || !bytes.Equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

// Where the devices of a disk begin: the disk, its metadata, and the two of its journal.
const (
	fromImages   = 0
	fromMetadata = 1
	fromJournals = 2
)

// lifeHost is a host with a copy of each disk: the disk, its metadata, and the two devices of its journal.
type lifeHost struct {
	disks [lifeDisks][4]*fakeDisk
	power *power
}

func newLifeHost(fill byte) *lifeHost {
	h := &lifeHost{}
	for i := range h.disks {
		h.disks[i] = [4]*fakeDisk{newPoweredFake(bytes.Repeat([]byte{fill}, lifeSize)), newMetaDevice(lifeSize),
			newPoweredFake(make([]byte, 2*minJournal+2*lifeSize)), newPoweredFake(make([]byte, minJournal))}
	}
	return h
}

// on gives the host power for some more operations, or for ever if that is negative.
func (h *lifeHost) on(left int) {
	h.power = &power{left: left}
	for _, d := range h.disks {
		for _, f := range d {
			f.power = h.power
		}
	}
}

// full lets n writes find no room, after some that do: of the images, the metadata and the journals, from the first
// of these on.
func (h *lifeHost) full(first, after, n int) {
	var written atomic.Int64 // by all of them, which are written at the same time
	for _, d := range h.disks {
		for _, f := range d[first:] {
			f.failWrite = func(int64, int) error {
				if at := int(written.Add(1)); at > after && at <= after+n {
					return syscall.ENOSPC
				}
				return nil
			}
		}
	}
}

func (h *lifeHost) out() bool {
	h.power.mu.Lock()
	defer h.power.mu.Unlock()
	return h.power.out
}

// cut takes the power away, and with it some of what was not flushed.
func (h *lifeHost) cut(rng *rand.Rand) {
	for i := range h.disks {
		for k, d := range h.disks[i] {
			h.disks[i][k] = d.cutPower(rng)
		}
	}
	h.on(-1)
}

func (h *lifeHost) contents() (all images) {
	for i := range h.disks {
		all[i] = bytes.Clone(h.disks[i][0].data)
	}
	return all
}
