package protect

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/gocolo/lockstep/internal/wait"
)

// Worlds that are wider: a guest with two NICs and two disks, a third host in any kind of
// world, and what an operator does now and then.

// second has the second network card and the second disk of a host, in a world where each host
// has two.
type second struct {
	nic   *NIC
	disk  *Disk
	image *image
}

// secondDisk ends the name of the second image of a host.
const secondDisk = "/data"

// widens chooses what a seed has more than others. Seeds that are kept do as before.
func (s *simulation) widens(seed uint64) {
	draw := s.wide
	if draw == nil {
		return
	}
	s.late = draw.IntN(4) == 0
	if s.twofold = !s.compared && draw.IntN(4) == 0; s.twofold {
		s.guest.VCPUs = 2
		s.guest.Interval *= 2
	}
	if third := draw.IntN(4) == 0; third && seed%8 != 4 && !s.compared {
		s.addThird(draw)
	}
}

// addThird lets there be a third host.
func (s *simulation) addThird(draw *rand.Rand) {
	s.names = append(s.names, "c")
	s.turn = time.Duration(400+draw.IntN(2000)) * time.Millisecond // there is time for a set of connections
}

// makeImages gives each host its disks.
func (w *world) makeImages() {
	made := func(size int) *image { return &image{b: make([]byte, size), loose: map[int][]byte{}} }
	for _, name := range w.names {
		if !w.twofold {
			w.images[name] = made(w.size)
			continue
		}
		w.images[name], w.images[name+secondDisk] = made(w.size/2), made(w.size/2)
	}
}

// addSecond gives a host its second NIC and disk.
func (h *host) addSecond(cfg *Config) {
	var err error
	if h.second.nic, err = NewNIC(NICConfig{Uplink: uplink{h}, Instance: 1}); err != nil {
		h.w.t.Fatal(err)
	}
	cfg.Network = append(cfg.Network, paced{h.second.nic, h})
	if h.w.disks {
		h.second.image = h.w.images[h.name+secondDisk]
		if h.second.disk, err = NewDisk(h.diskConfig("data", h.name+secondDisk)); err != nil {
			h.w.t.Fatal(err)
		}
		cfg.Disks = append(cfg.Disks, h.second.disk)
	}
}

// vCPUOf returns the vCPU that has made a frame.
func vCPUOf(frame []byte) int { return int(binary.BigEndian.Uint32(frame[len(frame)-28:])) }

// placeOf returns where the guest's write goes, and which vCPU's it is.
func (h *host) placeOf(off int64) (d *Disk, at int64, vcpu int) {
	if half := int64(h.w.size / 2); h.w.twofold && off >= half {
		return h.second.disk, off - half, 1
	}
	return h.disk, off, 0
}

// diskAndImage is one of a host's disks.
type diskAndImage struct {
	disk  *Disk
	image *image
}

// allDisks returns the host's disks, in the order in which the guest sees them.
func (h *host) allDisks() []diskAndImage {
	all := []diskAndImage{{h.disk, h.image}}
	if h.w.twofold {
		all = append(all, diskAndImage{h.second.disk, h.second.image})
	}
	return all
}

// diskHasFailed reports whether one of them ever has.
func (h *host) diskHasFailed() bool {
	for _, d := range h.allDisks() {
		if d.image.failed.Load() {
			return true
		}
	}
	return false
}

// one chooses one of a host's disks.
func (s *simulation) one(h *host) *image {
	if s.twofold && s.wide.IntN(2) == 0 {
		return h.second.image
	}
	return h.image
}

// alsoDoes calls a verb that an operator calls now and then, and reports whether it has called
// one.
func (s *simulation) alsoDoes(h *host) bool {
	if h.over() { // it was migrated away from
		s.again(h)
		return true
	}
	switch s.wide.IntN(3) {
	case 0:
		d := time.Duration(20+s.wide.IntN(400)) * time.Millisecond
		s.say("%s: a checkpoint every %v", h.name, d)
		h.job.SetDelay(d)
	default:
		s.migrate(h)
	}
	return true
}

// migrate is the verb. The host's job ends with it, and an operator boots it anew.
func (s *simulation) migrate(h *host) {
	h.migrates.Store(true)
	s.verb(h, "migrate", h.job.Migrate)
}

// followerOf returns the host that follows one that is about to die, if no other has the guest.
func (s *simulation) followerOf(h *host) (follows *host) {
	for _, o := range s.up() {
		switch state := o.job.State(); {
		case o == h:
		case state == Following && o.job.Query().Peer == h.name:
			follows = o
		case state != Waiting:
			return nil
		}
	}
	return follows
}

// fences has an operator tell a host that the one that it follows is dead, which is so; unless
// it follows another by then, or nobody, or the arbiter has been told that the dead one had gone on
// without it.
func (s *simulation) fences(h *host) {
	if s.kept != nil {
		return // the dead one comes back at once, and might start the guest from its disks
	}
	after := time.Duration(s.wide.IntN(1500)) * time.Millisecond
	follows := h.job.session()
	s.verb(h, "fenced", func(ctx context.Context) error {
		wait.For(ctx, after)
		if r, _ := s.store.Load(ctx); follows == nil || h.job.session() != follows || r.Generation > follows.peer.generation {
			return nil
		}
		err := h.job.Fenced()
		if err == nil {
			s.fenced.Add(1)
			s.word.Store(h.job.keeper.Generation())
			h.has(s.word.Load())
		}
		return err
	})
}

// pauses is the verb that pauses and resumes.
func (s *simulation) pauses(ctx context.Context, h *host) error {
	s.pausing.Add(1)
	defer s.pausing.Add(-1)
	if err := h.job.Pause(ctx, "simulated"); err != nil {
		return err
	}
	wait.For(ctx, 300*time.Millisecond)
	return h.job.Resume()
}
