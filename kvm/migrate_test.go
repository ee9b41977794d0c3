//go:build linux && amd64

package kvm_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/guest"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/kvm"
	"github.com/gocolo/lockstep/migrate"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// port is the machine's device, as it moves with the guest.
type port struct{ m *machine }

func (p port) VMState(f *vmstate.Fields) {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	for v := range p.m.polls {
		polls := uint64(p.m.polls[v])
		f.Uint64("polls", &polls)
		f.Uint64("reads", &p.m.reads[v])
		p.m.polls[v] = int(polls)
	}
}

// moved is a machine's devices and memory, for package migrate.
func (m *machine) moved(memory interface {
	Register(*vmstate.Registry) error
}) *vmstate.Registry {
	m.t.Helper()
	reg := &vmstate.Registry{}
	port1 := vmstate.Entry{Name: "port", Version: 1, MinVersion: 1}
	if err := errors.Join(memory.Register(reg), m.Register(reg), reg.Register(port1, port{m})); err != nil {
		m.t.Fatal(err)
	}
	return reg
}

// rewritten is a log of a VM all of whose memory has been written again at each look, however
// much its guest gets to run.
type rewritten struct{ *kvm.VM }

func (r rewritten) ReadDirty(block string, bitmap []uint64) error {
	ram.Bitmap(bitmap).SetRange(0, len(r.Memory())/kvm.PageSize)
	return r.VM.ReadDirty(block, bitmap)
}

// untilAsked is a source's connection that lets nothing through behind the package before
// the destination has asked for memory.
type untilAsked struct {
	net.Conn
	tail  []byte
	asked chan struct{}
	once  sync.Once
	read  []byte
}

func (u *untilAsked) Write(p []byte) (int, error) {
	ping4 := []byte{8, 0, 2, 0, 4, 0, 0, 0, 4} // behind the package
	if bytes.HasSuffix(u.tail, ping4) {
		select {
		case <-u.asked:
		case <-time.After(time.Minute):
			return 0, errors.New("the guest has asked for nothing")
		}
	} else {
		u.tail = append(u.tail, p...)
		u.tail = u.tail[max(0, len(u.tail)-len(ping4)):]
	}
	return u.Conn.Write(p)
}

func (u *untilAsked) Read(p []byte) (int, error) {
	n, err := u.Conn.Read(p)
	u.read = append(u.read, p[:n]...)
	if err != nil || bytes.Contains(u.read, []byte(kvm.RAMBlock)) { // of a REQ_PAGES
		u.once.Do(func() { close(u.asked) })
	}
	return n, err
}

func TestAGuestGoesOnExactlyWhereItWasMigratedTo(t *testing.T) {
	for name, postcopy := range map[string]bool{"precopy": false, "postcopy": true} {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, p guest.Params, cfg kvm.Config) {
				p.TSCPerMille = 300
				goesOn(t, p, cfg, postcopy)
			})
		})
	}
}

// goesOn migrates a running guest to another VM over TCP, and compares all that it has ever
// emitted, and its memory, with the model.
func goesOn(t *testing.T, p guest.Params, cfg kvm.Config, postcopy bool) {
	a, b := newMachine(t, p, cfg), newMachine(t, p, cfg)
	lazy, err := ram.NewLazy(blocksOf(b))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // before the machines go, whose vCPUs may wait for memory
		if err := lazy.Close(); err != nil {
			t.Error(err)
		}
	})
	if postcopy {
		require.Granted(t, require.Userfaultfd, lazy.Probe())
	}
	a.busy, a.limit = 1, 400
	a.load()
	a.start()
	a.await(100)
	saver := ram.NewLazySaver(blocksOf(a), rewritten{a.VM}, ram.SaverConfig{})
	source := migrate.NewSource(migrate.SourceConfig{
		VM: a, State: a.moved(saver), Memory: saver, Blocks: blocksOf(a),
		Postcopy: postcopy, MaxDowntime: 1, MaxPasses: 3,
	})

	b.busy, b.limit = 1, a.limit+100
	b.pause()
	b.start()
	b.ensure = func(addr uint64) error { return lazy.Ensure(kvm.RAMBlock, addr, kvm.PageSize) }
	destination := migrate.NewDestination(migrate.DestinationConfig{
		VM: b, State: b.moved(lazy), Memory: lazy, Blocks: blocksOf(b), Postcopy: postcopy,
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	x, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	y, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	arrived := make(chan error, 1)
	go func() { arrived <- destination.Run(ctx, y) }()
	var conn migrate.Conn = x
	if postcopy {
		conn = &untilAsked{Conn: x, asked: make(chan struct{})}
	}
	sent := source.Run(ctx, conn)
	if err := errors.Join(sent, <-arrived); err != nil {
		t.Fatal(err)
	}
	before := a.frames // it stands still there
	a.halt()
	b.awaitLimit()
	b.halt()
	b.check(before)
	s, d := source.Stats, destination.Stats
	if s.Postcopy != postcopy || d.Postcopy != postcopy || postcopy && d.Touched == 0 {
		t.Errorf("%+v, %+v", s, d)
	}
}
