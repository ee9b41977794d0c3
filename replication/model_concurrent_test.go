package replication

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// The disk of the concurrent model is, by sectors: for each of some writers of
// the primary's guest, sectors that it alone writes, next to those of the
// others; some that two writers write across each other; and for each of some
// writers of the secondary's guest its own. The rest stays as it is.
const (
	cmWriters = 4
	cmTurns   = 16 // sectors of each writer
	cmOwn     = cmWriters * cmTurns
	cmShared  = 32
	cmTwin    = 2 * 8 // of the secondary's guest
	cmSectors = cmOwn + cmShared + cmTwin
	cmStatic  = cmSectors * SectorSize // from here on nobody writes
	cmSize    = cmStatic + 2*ChunkSize
)

// slot is a sector that one goroutine writes, in versions that count up.
type slot struct {
	started, done atomic.Uint64 // the version that is, or was last, being written, and that was answered
	flushed       atomic.Uint64 // a flush that began after its answer was answered
}

// cmodel is one run of the concurrent model.
type cmodel struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	s    *sched

	hostA, hostB          *power
	local, ldev           *fakeDisk // the primary's disk, and its metadata
	disk, sdev            *fakeDisk // the secondary's
	hidden, active        *fakeDisk
	journal               bool
	p                     *Primary
	sec                   *Secondary
	remote                *schedRemote
	slots                 [cmOwn]slot
	vm, twin              sync.RWMutex // held exclusively while a guest is paused
	twinSlots             [cmTwin]slot
	committed, committing []byte // the last checkpoint, and the one that is being made
	stop                  atomic.Bool
	failed                atomic.Bool
}

func (m *cmodel) errorf(format string, args ...any) {
	if !m.failed.Swap(true) {
		m.t.Errorf("seed %d (again: -run TestModelConcurrent -model.seed=%[1]d): %s", m.seed, fmt.Sprintf(format, args...))
	}
}

// TestModelConcurrent has writers, readers, flushers, checkpoints, failures and
// power cuts all at the same time, in an order that a seeded scheduler makes up
// at every operation on a disk or a connection.
func TestModelConcurrent(t *testing.T) {
	if *modelSeed != 0 {
		for range 20 { // the scheduler is not alone in deciding
			runConcurrent(t, *modelSeed)
		}
		return
	}
	seeds := *modelSeeds / 60
	switch {
	case raceEnabled:
		seeds /= 6
	case testing.Short():
		seeds /= 6
	}
	base := uint64(time.Now().UnixNano())
	var wg sync.WaitGroup
	const atOnce = 2
	for w := range uint64(atOnce) {
		wg.Go(func() {
			for i := w; i < uint64(seeds) && !t.Failed(); i += atOnce {
				runConcurrent(t, base+i)
			}
		})
	}
	wg.Wait()
}

func runConcurrent(t *testing.T, seed uint64) {
	m := &cmodel{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 5)), s: newSched(seed)}
	hang := time.AfterFunc(time.Minute, func() { panic(fmt.Sprintf("seed %d hangs", seed)) })
	defer hang.Stop()
	defer m.s.run()()
	m.journal = m.rng.IntN(3) > 0
	m.local, m.ldev = newPoweredFake(m.initial()), newMetaDevice(cmSize)
	m.disk, m.sdev = newPoweredFake(make([]byte, cmSize)), newMetaDevice(cmSize)
	m.hidden, m.active = newPoweredFake(make([]byte, 1<<20)), newPoweredFake(make([]byte, 1<<20))
	if !m.bootPrimary() || !m.bootSecondary() {
		return
	}
	for round := 0; round < 3 && !m.failed.Load(); round++ {
		if !m.protect() {
			break
		}
	}
	m.closeRemote()
}

// initial is version 0 of every slot.
func (m *cmodel) initial() []byte {
	p := make([]byte, cmSize)
	for i := range int64(cmSize / SectorSize) {
		fillVersion(p[i*SectorSize:][:SectorSize], i, 0)
	}
	return p
}

func fillVersion(p []byte, slot int64, version uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(slot)<<48|version)
	}
}

// version reads what fillVersion wrote; ok is false if a sector is torn, or
// another's.
func version(p []byte, slot int64) (v uint64, ok bool) {
	first := binary.LittleEndian.Uint64(p)
	for i := 8; i < len(p); i += 8 {
		if binary.LittleEndian.Uint64(p[i:]) != first {
			return 0, false
		}
	}
	return first & (1<<48 - 1), first>>48 == uint64(slot)
}

// bootPrimary starts the primary's host, and reports whether that goes on. It is called
// on any goroutine, and so ends none.
func (m *cmodel) bootPrimary() bool {
	m.hostA = &power{left: -1}
	for _, d := range []*fakeDisk{m.local, m.ldev} {
		d.power, d.failSync = m.hostA, nil
	}
	meta, err := OpenMetadata(&schedDisk{fakeDisk: m.ldev, s: m.s})
	if err != nil {
		m.errorf("metadata of the primary: %v", err)
		return false
	}
	p, err := NewPrimary(&schedKept{schedDisk{m.local, m.s, meta}}, PrimaryConfig{Overwrite: true})
	if err != nil {
		m.errorf("primary: %v", err)
		return false
	}
	m.p = p
	return true
}

// bootSecondary is bootPrimary for the secondary's host.
func (m *cmodel) bootSecondary() bool {
	m.hostB = &power{left: -1}
	for _, d := range []*fakeDisk{m.disk, m.sdev, m.hidden, m.active} {
		d.power, d.failSync = m.hostB, nil
	}
	meta, err := OpenMetadata(&schedDisk{fakeDisk: m.sdev, s: m.s})
	if err != nil {
		m.errorf("metadata of the secondary: %v", err)
		return false
	}
	cfg := SecondaryConfig{DeferCommit: m.rng.IntN(2) == 0}
	if m.journal {
		cfg.Journal, err = OpenJournal(&schedDisk{fakeDisk: m.hidden, s: m.s}, &schedDisk{fakeDisk: m.active, s: m.s})
		if err == nil {
			_, _, err = cfg.Journal.Recover(context.Background(), &schedKept{schedDisk{m.disk, m.s, meta}})
		}
		if err != nil {
			m.errorf("journal of the secondary: %v", err)
			return false
		}
	}
	sec, err := NewSecondary(&schedKept{schedDisk{m.disk, m.s, meta}}, cfg)
	if err != nil {
		m.errorf("secondary: %v", err)
		return false
	}
	m.sec = sec
	return true
}

func (m *cmodel) closeRemote() {
	if m.remote != nil {
		m.remote.Close()
		m.remote.wg.Wait()
		m.remote = nil
	}
}

func (p *power) isOut() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out
}

func (p *power) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.out = true
}

// protect joins the two sides and lets them work until something has happened.
// It reports whether they can be joined again.
func (m *cmodel) protect() bool {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	m.stop.Store(false)
	m.closeRemote()
	m.remote = newSchedRemote(m.sec.Export(), m.s)
	if err := m.p.Attach(m.remote); err != nil {
		m.errorf("attach: %v", err)
		return false
	}
	var running, workers sync.WaitGroup
	running.Go(func() { m.p.Run(ctx) })
	for w := range cmWriters {
		rng := rand.New(rand.NewPCG(m.seed, uint64(100+w)))
		workers.Go(func() { m.writer(w, rng) })
	}
	for w := range 2 {
		rng := rand.New(rand.NewPCG(m.seed, uint64(200+w)))
		workers.Go(func() { m.sharer(rng) })
	}
	early := m.rng.IntN(3) == 0 // something may happen before both sides run
	if early {
		m.plan(300)
	}
	err := m.start(ctx)
	if err == nil {
		if !early {
			m.plan(600)
		}
		for w := range 2 {
			rng := rand.New(rand.NewPCG(m.seed, uint64(300+w)))
			workers.Go(func() { m.twinWorker(w, rng) })
		}
		workers.Go(func() { m.checkpoints(ctx) })
	}
	workers.Wait()
	if err != nil && !early && !m.lostA() && !m.lostB() {
		m.errorf("start: %v", err)
	}
	end := m.rng.IntN(3)
	var again bool
	switch {
	case m.lostA():
		m.closeRemote()
		again = m.primaryLost()
	case m.lostB():
		m.p.Stop(ctx, true)
		m.closeRemote()
		again = m.secondaryLost()
	case end == 0:
		m.p.Stop(ctx, true)
		m.closeRemote()
		m.failover()
	case end == 1:
		m.p.Stop(ctx, true)
		m.closeRemote()
		m.hostB.cut()
		again = m.secondaryLost()
	default:
		m.p.Stop(ctx, true) // and the secondary as it is
		m.p.Detach()
		again = true
	}
	cancel()
	running.Wait()
	return again && !m.failed.Load()
}

// lostA reports whether the primary's host is of no use until it is started
// again: without power, or with a disk that has failed.
func (m *cmodel) lostA() bool { return m.hostA.isOut() || m.p.local.failed() != nil }

func (m *cmodel) lostB() bool {
	return m.hostB.isOut() || m.sec.disk.failed() != nil || m.journal && m.sec.cfg.Journal.failed() != nil
}

// start makes both sides run, at epoch 0, while the guest writes.
func (m *cmodel) start(ctx context.Context) error {
	if err := m.p.Synchronise(ctx, SyncConfig{}); err != nil {
		return err
	}
	m.vm.Lock()
	err := m.p.Mark(ctx, 0)
	image := m.local.content()
	if err == nil {
		m.wantMarked(0, image)
	}
	m.vm.Unlock()
	if err != nil {
		return err
	}
	m.committing = image
	if m.sec.State() == Running {
		err = m.sec.Checkpoint(ctx, m.sec.Epoch()+1)
	} else {
		err = m.sec.Start(ctx)
	}
	if err != nil {
		return err
	}
	m.committed, m.committing = image, nil
	for i := range m.twinSlots {
		m.twinSlots[i] = slot{}
	}
	if err := m.p.Loaded(ctx, 0); err != nil {
		return err
	}
	return m.p.Start(ctx)
}

func (d *fakeDisk) content() []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data)
}

// plan decides what goes wrong, and when.
func (m *cmodel) plan(within int) {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	at := m.s.ops + 1 + m.rng.IntN(within)
	fail := func(d *fakeDisk) func() {
		return func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			once := true
			d.failSync = func() error {
				if !once {
					return nil
				}
				once = false
				return errInjected
			}
		}
	}
	lose := m.remote
	m.s.when[at] = [...]func(){
		m.hostA.cut, m.hostB.cut, func() { lose.Close() },
		fail(m.local), fail(m.disk), fail(m.hidden), func() {},
	}[m.rng.IntN(7)]
}

// writer writes its own sectors, reads them, and flushes.
func (m *cmodel) writer(w int, rng *rand.Rand) {
	for i := 0; i < 30 && !m.stop.Load(); i++ {
		k := int64(rng.IntN(cmTurns)*cmWriters + w)
		sl := &m.slots[k]
		p := make([]byte, SectorSize)
		m.vm.RLock()
		switch rng.IntN(6) {
		case 0:
			before := m.answered(w)
			if m.p.Sync() == nil {
				m.flushed(w, before)
				m.wantFlushed(w, before)
			}
		case 1:
			lo := sl.done.Load()
			if _, err := m.p.ReadAt(p, k*SectorSize); err == nil {
				if v, ok := version(p, k); !ok || v < lo || v > sl.started.Load() {
					m.errorf("the primary's guest reads version %d, %v, of sector %d, it wrote %d", v, ok, k, lo)
				}
			}
		default:
			v := sl.started.Add(1)
			fillVersion(p, k, v)
			if _, err := m.p.WriteAt(p, k*SectorSize); err != nil {
				m.vm.RUnlock()
				return // the host is out of power
			}
			sl.done.Store(v)
		}
		m.vm.RUnlock()
	}
}

// answered returns which versions of a writer's sectors have been answered.
func (m *cmodel) answered(w int) (v [cmTurns]uint64) {
	for i := range v {
		v[i] = m.slots[i*cmWriters+w].done.Load()
	}
	return v
}

func (m *cmodel) flushed(w int, v [cmTurns]uint64) {
	for i := range v {
		m.slots[i*cmWriters+w].flushed.Store(v[i])
	}
}

// wantFlushed checks, when a flush has just been answered, that what was answered
// before it is on stable storage: a power cut would show it only if nothing has been
// synced since.
func (m *cmodel) wantFlushed(w int, before [cmTurns]uint64) {
	m.local.mu.Lock()
	defer m.local.mu.Unlock()
	for i, want := range before {
		k := int64(i*cmWriters + w)
		if v, ok := version(m.local.stable[k*SectorSize:][:SectorSize], k); !ok || v < want {
			m.errorf("a flush is answered, and of sector %d stable storage has version %d, %v; %d was answered before", k, v, ok, want)
		}
	}
}

// wantMarked checks, when a Mark has just returned and the guest is still paused,
// that both disks have on stable storage all that it wrote.
func (m *cmodel) wantMarked(epoch uint64, image []byte) {
	for _, side := range []struct {
		name string
		disk *fakeDisk
	}{{"primary", m.local}, {"secondary", m.disk}} {
		side.disk.mu.Lock()
		if at := firstDifference(side.disk.stable, image); at >= 0 {
			m.errorf("%d is marked, and stable storage of the %s differs at %d", epoch, side.name, at)
		}
		side.disk.mu.Unlock()
	}
}

// sharer writes ranges across those of the other.
func (m *cmodel) sharer(rng *rand.Rand) {
	for i := 0; i < 25 && !m.stop.Load(); i++ {
		off := rng.Int64N(cmShared*SectorSize - 1)
		n := 1 + rng.Int64N(min(6*SectorSize, cmShared*SectorSize-off))
		off += cmOwn * SectorSize
		m.vm.RLock()
		var err error
		if rng.IntN(4) == 0 {
			err = m.p.WriteZeroes(off, n)
		} else {
			_, err = m.p.WriteAt(bytes.Repeat([]byte{byte(rng.Uint32())}, int(n)), off)
		}
		m.vm.RUnlock()
		if err != nil {
			return
		}
	}
}

// checkpoints makes some, and then ends the others.
func (m *cmodel) checkpoints(ctx context.Context) {
	defer m.stop.Store(true)
	base := m.sec.Epoch()
	for i := range uint64(6) {
		m.vm.Lock()
		err := m.p.Mark(ctx, i+1)
		image := m.local.content()
		if err == nil {
			m.wantMarked(i+1, image)
		}
		m.vm.Unlock() // the primary's guest goes on
		if err != nil {
			return
		}
		m.twin.Lock()
		m.committing = image
		if m.rng.IntN(2) == 0 {
			err = m.sec.Prepare(ctx, base+i+1)
		}
		if err == nil {
			err = m.sec.Checkpoint(ctx, base+i+1)
		}
		if err == nil {
			m.committed, m.committing = image, nil
			for k := range m.twinSlots {
				m.twinSlots[k].done.Store(0)
				m.twinSlots[k].started.Store(0)
			}
		}
		m.twin.Unlock()
		if err != nil || m.p.Loaded(ctx, i+1) != nil {
			return
		}
	}
}

const cmTwinAt = cmOwn + cmShared

// twinWorker is a part of the secondary's guest: it reads what the primary's
// had at the checkpoint, and what it wrote itself since.
func (m *cmodel) twinWorker(w int, rng *rand.Rand) {
	for !m.stop.Load() {
		m.twin.RLock()
		m.twinStep(w, rng, m.sec.State() == Running)
		m.twin.RUnlock()
		if m.hostB.isOut() {
			return
		}
	}
}

func (m *cmodel) twinStep(w int, rng *rand.Rand, running bool) {
	p := make([]byte, SectorSize)
	k := rng.IntN(cmTwin/2)*2 + w
	sl, at := &m.twinSlots[k], int64(cmTwinAt+k)
	switch rng.IntN(5) {
	case 0:
		off := rng.Int64N(cmTwinAt) * SectorSize
		if rng.IntN(3) == 0 {
			off = cmStatic + rng.Int64N(2*ChunkSize/SectorSize)*SectorSize
		}
		if _, err := m.sec.ReadAt(p, off); err == nil && running && m.committed != nil && !bytes.Equal(p, m.committed[off:off+SectorSize]) {
			m.errorf("the secondary's guest reads at %d what is not of the checkpoint", off)
		}
	case 1, 2:
		v := sl.started.Add(1)
		fillVersion(p, at, v)
		if _, err := m.sec.WriteAt(p, at*SectorSize); err == nil {
			sl.done.Store(v)
		}
	case 3:
		lo := sl.done.Load()
		if _, err := m.sec.ReadAt(p, at*SectorSize); err == nil {
			if v, ok := version(p, at); !ok || v < lo || v > sl.started.Load() {
				m.errorf("the secondary's guest reads version %d, %v, of its sector %d, it wrote %d", v, ok, k, lo)
			}
		}
	case 4:
		var before [cmTwin]uint64
		for i := range before {
			before[i] = m.twinSlots[i].done.Load()
		}
		if m.sec.Sync() == nil && !running {
			for i := range before {
				if i%2 == w {
					m.twinSlots[i].flushed.Store(before[i])
				}
			}
		}
	}
}

// primaryLost cuts the primary's power, and starts it again.
func (m *cmodel) primaryLost() bool {
	m.hostA.cut()
	m.local, m.ldev = m.local.cutPower(m.rng), m.ldev.cutPower(m.rng)
	for k := range m.slots {
		sl := &m.slots[k]
		v, ok := version(m.local.data[k*SectorSize:][:SectorSize], int64(k))
		if !ok || v < sl.flushed.Load() || v > sl.started.Load() {
			m.errorf("after a power cut of the primary sector %d has version %d, %v; %d was flushed, %d written", k, v, ok, sl.flushed.Load(), sl.done.Load())
		}
		sl.started.Store(v)
		sl.done.Store(v)
	}
	m.p.Cut()
	if !m.bootPrimary() {
		return false
	}
	if m.lostB() {
		m.hostB.cut()
		return m.secondaryLost()
	}
	return true
}

// secondaryLost cuts the secondary's power, and starts it again.
func (m *cmodel) secondaryLost() bool {
	for _, d := range []**fakeDisk{&m.disk, &m.sdev, &m.hidden, &m.active} {
		*d = (*d).cutPower(m.rng)
	}
	if !m.bootSecondary() {
		return false
	}
	if !m.journal || m.committed == nil {
		return true
	}
	got := m.disk.content()
	if !bytes.Equal(got, m.committed) && (m.committing == nil || !bytes.Equal(got, m.committing)) {
		at := firstDifference(got, m.committed)
		m.errorf("after a power cut the secondary, which is %v, is not at a checkpoint: at %d; one that was being made differs at %d", m.sec.Identity(), at, differenceOrNone(got, m.committing))
	}
	m.committed, m.committing = got, nil
	return true
}

// failover lets the secondary's guest go on alone, and cuts its power.
func (m *cmodel) failover() {
	ctx := context.Background()
	err := m.sec.Stop(ctx, true)
	if m.sec.State() == None || m.sec.State() == Running {
		return // the run had not begun, or could not be ended
	}
	_ = err
	var workers sync.WaitGroup
	m.stop.Store(false)
	for w := range 2 {
		rng := rand.New(rand.NewPCG(m.seed, uint64(400+w)))
		workers.Go(func() {
			for range 40 {
				m.twinStep(w, rng, false)
			}
		})
	}
	workers.Go(func() { m.sec.Commit(ctx) })
	workers.Wait()
	if m.sec.State() == Done {
		got := m.disk.content()
		if i := firstDifference(got[:cmTwinAt*SectorSize], m.committed[:cmTwinAt*SectorSize]); i >= 0 {
			m.errorf("after a failover the disk is not that of the checkpoint: at %d", i)
		}
	}
	m.hostB.cut()
	for _, d := range []**fakeDisk{&m.disk, &m.sdev, &m.hidden, &m.active} {
		*d = (*d).cutPower(m.rng)
	}
	if m.journal && !m.bootSecondary() { // which recovers
		return
	}
	for k := range m.twinSlots {
		sl, at := &m.twinSlots[k], int64(cmTwinAt+k)
		v, ok := version(m.disk.data[at*SectorSize:][:SectorSize], at)
		if want := sl.flushed.Load(); want > 0 && (!ok || v < want || v > sl.started.Load()) {
			m.errorf("after a power cut of the promoted side its sector %d has version %d, %v; %d was flushed", k, v, ok, want)
		}
	}
}

func differenceOrNone(a, b []byte) int {
	if b == nil {
		return -2
	}
	return firstDifference(a, b)
}
