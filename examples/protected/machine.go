package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A machine is a very small VMM with a very small guest. Each round of the guest
// depends on all rounds before it and on the time, so that two runs of it differ,
// writes a page of its memory and sends one line. It is the protect.Guest.
type machine struct {
	memory []byte
	nic    interface{ WritePacket(p []byte) error }
	period time.Duration
	clock  uint64 // how many rounds the guest runs between two looks at the time

	mu     sync.Mutex // held by the vCPU during a round
	pauses int
	dirty  []uint64
	round  round
	unsent bool // the NIC was full
}

// A round is the guest's registers.
type round struct{ n, time, hash uint64 }

// next is the guest's program.
func (r round) next(now uint64) round {
	h := (r.hash ^ now ^ r.n<<32) * 0x9e3779b97f4a7c15
	return round{r.n + 1, now, h ^ h>>29}
}

func (r round) String() string { return fmt.Sprintf("%d %d %016x", r.n, r.time, r.hash) }

// newMemory makes the guest's memory.
var newMemory = func(size int) []byte { return make([]byte, size) }

func newMachine(pages int, period time.Duration) *machine {
	return &machine{memory: newMemory(pages * ram.PageSize), dirty: make([]uint64, (pages+63)/64), period: period, clock: 1, pauses: 1}
}

// run is the vCPU.
func (m *machine) run(ctx context.Context) {
	for tick := time.NewTicker(m.period); ctx.Err() == nil; <-tick.C {
		m.mu.Lock()
		if m.pauses == 0 {
			m.step(uint64(time.Now().UnixMicro()))
		}
		m.mu.Unlock()
	}
}

func (m *machine) step(now uint64) {
	if !m.unsent {
		if m.round.n%m.clock != 0 {
			now = m.round.time
		}
		m.round = m.round.next(now)
		page := int(m.round.hash % uint64(len(m.memory)/ram.PageSize))
		m.dirty[page/64] |= 1 << (page % 64)
		copy(m.memory[page*ram.PageSize:], m.round.String())
	}
	m.unsent = m.nic.WritePacket([]byte(m.round.String())) != nil
}

func (m *machine) Pause(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pauses++
	return nil
}

func (m *machine) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pauses = max(0, m.pauses-1)
	return nil
}

func (m *machine) Blocks() []ram.Block { return []ram.Block{{Name: "ram", Host: m.memory}} }

func (m *machine) ReadDirty(_ string, bitmap []uint64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, w := range m.dirty {
		bitmap[i] |= w
		m.dirty[i] = 0
	}
	return nil
}

func (m *machine) Register(reg *vmstate.Registry) error {
	return reg.Register(vmstate.Entry{Name: "cpu", Version: 1, MinVersion: 1}, m)
}

// VMState names the registers. (A vmstate.Device.)
func (m *machine) VMState(f *vmstate.Fields) {
	f.Uint64("n", &m.round.n)
	f.Uint64("time", &m.round.time)
	f.Uint64("hash", &m.round.hash)
	f.Bool("unsent", &m.unsent)
}
