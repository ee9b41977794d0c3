package protect

import (
	"encoding/binary"
	"slices"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/replication"
)

// All hosts die, and come back: the memory of the guest is gone, and the disks say who starts it
// anew. What the world has been told is on a disk must be there.

// A lasting is what a host finds beside an image when it comes back: what is known of the copy and,
// where hosts have journals, both parts of that.
type lasting struct{ meta, hidden, active *image }

// keepsImages gives each image a place for what is known of it.
func (w *world) keepsImages(journals bool) {
	w.kept = map[string]*lasting{}
	made := func(size int) *image { return &image{b: make([]byte, size), loose: map[int][]byte{}} }
	for name := range w.images {
		k := &lasting{meta: made(2 * metadataBytes)}
		if journals {
			k.hidden, k.active = made(6*w.size), made(6*w.size)
		}
		w.kept[name] = k
	}
}

// diskConfig is the configuration of one of a host's disks; image is its name among the images.
func (h *host) diskConfig(name, image string) DiskConfig {
	at := ofProcess{h.w.images[image], h}
	cfg := DiskConfig{Name: name, Image: at}
	if h.w.growing {
		cfg.Image, cfg.Grown = growable{at, at}, h.hasGrown
	}
	k := h.w.kept[image]
	if k == nil {
		return cfg
	}
	m, err := replication.OpenMetadata(ofProcess{k.meta, h})
	if err == nil && k.hidden != nil {
		h.w.images[image].breaks(nil) // it is recovered first, or the host does not come up
		cfg.Journal, err = replication.OpenJournal(ofProcess{k.hidden, h}, ofProcess{k.active, h})
	}
	if err != nil {
		h.w.t.Fatalf("%s: %v", h.name, err)
	}
	if cfg.Image = (kept{at, m}); h.w.growing {
		cfg.Image = growableKept{growable{at, at}, m}
	}
	return cfg
}

// lasts chooses whether a seed has disks that outlive their hosts.
func (s *simulation) lasts() {
	if s.later == nil || !s.disks || len(s.names) > 2 && !s.kinds.three || s.manual {
		return
	}
	s.keepsImages(s.later.IntN(2) == 0)
}

// coldStart lets all hosts die, and come back one after the other.
func (s *simulation) coldStart() {
	draw := s.later
	power := draw.IntN(2) == 0
	var had *host
	if h := s.runs(); h != nil && !h.diskHasFailed() && !h.stands() {
		had = h
	}
	s.say("all hosts die, power cut %v", power)
	for _, h := range s.up() {
		h.kill(true)
		s.dead = append(s.dead, h)
	}
	if power {
		for name, image := range s.images {
			image.powerCut()
			k := s.kept[name]
			k.meta.powerCut()
			if k.hidden != nil {
				k.hidden.powerCut()
				k.active.powerCut()
			}
		}
	}
	s.answered()
	for _, h := range s.dead {
		h.bury()
	}
	for _, h := range s.ended {
		<-h.done
	}
	s.dead, s.ended = nil, nil
	s.word.Store(0)
	s.f.ways.mend(true)
	s.reach.Store(0)
	s.spoilt.Store(false)
	sound := had != nil
	for _, image := range s.images {
		image.breaks(nil)
		image.slows(0)
		sound = sound && !image.failed.Load()
	}
	s.elapse(time.Duration(draw.IntN(5000)) * time.Millisecond)
	sound = sound && !s.odd.back // the disks may be of a generation before the one that a person writes
	s.writesTheRecordAnew()
	before := s.anew.Load()
	s.coldStarts++
	names := slices.Clone(s.names)
	draw.Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
	for _, name := range names {
		s.start(name, false)
		s.elapse(time.Duration(draw.IntN(1<<draw.IntN(13))) * time.Millisecond)
	}
	if s.starts(before, 30*time.Second) {
		return
	}
	if sound {
		s.t.Errorf("nobody starts the guest, which %s had", had.name)
		s.standings()
		return
	}
	// A person says that the disks of one will do.
	for _, name := range names {
		s.say("a person has %s start the guest", name)
		s.live[name].migrates.Store(true)
		s.live[name].halt()
		s.byWord.Store(true)
		s.start(name, true)
		started := s.starts(before, 10*time.Second)
		if s.byWord.Store(false); started {
			return
		}
	}
	s.say("the disks start nothing")
	s.diskless = true // but by a person who records another generation on them
}

// starts waits for the guest to be started once more than so often.
func (s *simulation) starts(before int64, within time.Duration) bool {
	for bound := time.Now().Add(within); time.Now().Before(bound); time.Sleep(50 * time.Millisecond) {
		if s.anew.Load() > before {
			return true
		}
	}
	return false
}

// startsAnew is called before a host lets the guest run anew, from its disks.
func (w *world) startsAnew(h *host) {
	var content []byte
	for _, d := range h.allDisks() {
		d.image.settle()
		part := make([]byte, w.size/len(h.allDisks()))
		d.image.ReadAt(part, 0)
		content = append(content, part...)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.anew.Add(1)
	if !w.byWord.Load() {
		w.hasWhatWasHeard(h, content)
	}
	h.trace("starts anew", 0)
	w.base, w.writes, w.before = content, map[uint64][]write{}, len(w.wire)
	o, err := colotest.NewOracle(w.guest)
	if err != nil {
		w.t.Error(err)
		return
	}
	if v := w.oracle.Verdict(); !v.Clean() {
		w.t.Errorf("the client noticed: %+v", v)
	}
	w.oracle = o
}

// hasWhatWasHeard checks that a disk has all that the guest had made stable before it said what has
// left. w.mu is held.
func (w *world) hasWhatWasHeard(h *host, content []byte) {
	sectors := w.size / sectorSize
	stable, loose := make([]string, sectors), make([][]string, sectors)
	for i := range stable {
		if w.base != nil {
			stable[i] = string(w.base[i*sectorSize : (i+1)*sectorSize])
		} else {
			stable[i] = string(make([]byte, sectorSize))
		}
	}
	half := func(i int) int { return i / max(1, sectors/2) }
	heard := map[uint64]bool{}
	take := func(writes []write, counts bool) {
		for _, wr := range writes {
			for i := range len(wr.data) / sectorSize {
				at := int(wr.off)/sectorSize + i
				loose[at] = append(loose[at], wr.data[i*sectorSize:(i+1)*sectorSize])
			}
			if !wr.flush || wr.failed || !counts {
				continue
			}
			for i := range loose {
				if n := len(loose[i]); n > 0 && (!w.twofold || half(i) == half(int(wr.off)/sectorSize)) {
					stable[i], loose[i] = loose[i][n-1], nil
				}
			}
		}
	}
	for _, frame := range w.wire[w.before:] {
		round := binary.BigEndian.Uint64(frame[len(frame)-16:])
		if !heard[round] {
			heard[round] = true
			take(w.writes[round], true)
		}
	}
	for round, writes := range w.writes {
		if !heard[round] {
			take(writes, false)
		}
	}
	for _, o := range w.booted {
		for _, writes := range o.wrote {
			take(writes, false)
		}
	}
	for i := range stable {
		got := string(content[i*sectorSize : (i+1)*sectorSize])
		if got != stable[i] && !slices.Contains(loose[i], got) {
			w.t.Errorf("%s starts the guest from a disk whose sector %d lacks what was stable when %d frames had left: %.8x, not %.8x", h.name, i, len(heard), got, stable[i])
			return
		}
	}
}
