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
	seeds := max(modelRuns()/60, 8)
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
		m.closeRemote()
		switch { // what was planned for the time before may only happen now
		case m.lostA():
			return m.primaryLost() && !m.failed.Load()
		case m.lostB():
			m.hostB.cut()
			return m.secondaryLost() && !m.failed.Load()
		}
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
