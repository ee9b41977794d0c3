package migrate

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// newPrecopy prepares a migration without postcopy.
func newPrecopy(t testing.TB, seed uint64, flows ...[2]colotest.Flow) *move {
	t.Helper()
	m := newMove(t, seed, flows...)
	s, d := m.source.cfg, m.destination.cfg
	s.Postcopy, s.MaxPasses, d.Postcopy = false, 3, false
	m.source, m.destination = NewSource(s), NewDestination(d)
	return m
}

func TestAGuestArrivesWithAllItsMemory(t *testing.T) {
	m := newPrecopy(t, 1)
	m.run()
	m.arrived()
	if s, d := m.source.Stats, m.destination.Stats; s.Postcopy || d.Postcopy || s.Passes != 3 {
		t.Errorf("%+v, %+v", s, d)
	}
}

func TestAGuestThatWritesLittleNeedsNoPostcopy(t *testing.T) {
	m := newMove(t, 1)
	m.source.cfg.MaxDowntime = 1e12
	m.run()
	m.arrived()
	if m.source.Stats.Postcopy || m.source.Stats.Passes != 1 {
		t.Errorf("%+v", m.source.Stats)
	}
}

func TestOnlyOneSideHasTheGuestWhereverPrecopyBreaks(t *testing.T) {
	whole := newPrecopy(t, 6)
	whole.run()
	whole.arrived()
	for direction := range 2 {
		traffic := whole.sent[0][direction]
		step := traffic.Bytes/40 + 1
		n := 0
		for p := range traffic.Points(func(i int64) bool { return i%step == 0 || i > traffic.Bytes-60 && i%3 == 0 }) {
			if n++; p.Op == colotest.Read || testing.Short() && n%4 != 0 {
				continue
			}
			var f [2]colotest.Flow
			f[direction] = colotest.Flow{Break: p, Drop: p.N%2 == 0}
			m := newPrecopy(t, 6, f)
			m.run()
			m.settled(p)
		}
	}
}

func TestARefusedGuestRunsOnAtTheSource(t *testing.T) {
	m := newPrecopy(t, 2)
	refusal := errors.New("no such chip")
	m.dst.device.after = func() error { return refusal }
	m.run()
	if !errors.Is(m.srcErr, ErrRefused) || !errors.Is(m.dstErr, refusal) {
		t.Errorf("%v, %v", m.srcErr, m.dstErr)
	}
	src, n := m.src.runs()
	if dst, _ := m.dst.runs(); !src || n != 1 || dst {
		t.Errorf("the guest runs at the source: %v, %d resumes; at the destination: %v", src, n, dst)
	}
}

func TestADestinationRefusesAnotherMachine(t *testing.T) {
	m := newPrecopy(t, 2)
	m.destination.cfg.Machine = "other"
	m.run()
	if !errors.Is(m.dstErr, vmstate.ErrConfiguration) || !strings.HasPrefix(m.dstErr.Error(), "migrate: configuration: machine type ") {
		t.Errorf("%v", m.dstErr)
	}
	m.oneSide()
}

func TestPostcopyThatTheDestinationDoesNotWantIsRefused(t *testing.T) {
	m := newMove(t, 2)
	d := m.destination.cfg
	d.Postcopy = false
	m.destination = NewDestination(d)
	m.run()
	if m.dstErr == nil || !strings.Contains(m.dstErr.Error(), "RAM postcopy is true there and false here") {
		t.Errorf("%v", m.dstErr)
	}
	m.oneSide()
}

// A source may say that only bitmaps of disks are to follow the guest. Memory is not made missing
// by that, neither under the goroutines of channels, which would wait for it in the kernel, nor
// for a guest that would run without.
func TestASourceThatAnnouncesBitmapsAloneDoesNotGetPostcopy(t *testing.T) {
	dst := newTarget(t)
	d := NewDestination(DestinationConfig{VM: dst, State: &dst.state, Memory: dst.lazy, Blocks: dst.blocks, Machine: "test", NoDescription: true})
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "test"})
	vmstate.PutCommand(w, vmstate.PostcopyAdvise{}.Command())
	vmstate.PutCommand(w, vmstate.PostcopyListen())
	vmstate.PutCommand(w, vmstate.PostcopyRun())
	vmstate.PutEOF(w)
	check(t, w.Flush())
	err := d.Run(t.Context(), stream{&b})
	if !errors.Is(err, vmstate.ErrCommand) || !strings.Contains(err.Error(), "postcopy-listen") {
		t.Errorf("%v", err)
	}
	if _, n := dst.runs(); n > 0 {
		t.Error("the guest has run")
	}
	if err := dst.lazy.Serve(nil); err == nil || !strings.Contains(err.Error(), "before Listen") {
		t.Errorf("memory was made missing: %v", err)
	}
}

// A guest that is to run before its memory is here runs when it is told to, and not at the end of a
// stream that does not say so: nobody would bring what is missing.
func TestAGuestWhoseStreamEndsInsteadOfItsStartDoesNotRun(t *testing.T) {
	for _, last := range []string{"discard", "listening"} {
		dst := newTarget(t)
		d := NewDestination(DestinationConfig{
			VM: dst, State: &dst.state, Memory: dst.lazy, Blocks: dst.blocks, Machine: "test", Postcopy: true, NoDescription: true,
		})
		var b bytes.Buffer
		w := qemufile.NewWriter(&b)
		vmstate.PutFileHeader(w)
		vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "test"})
		vmstate.PutCommand(w, vmstate.PostcopyAdvise{RAM: true, PageSizes: ram.PageSizes(dst.blocks), TargetPageSize: ram.PageSize}.Command())
		vmstate.PutRAMDiscard(w, vmstate.RAMDiscard{Block: dst.blocks[0].Name, Ranges: []vmstate.Range{{Start: 0, Length: ram.PageSize}}})
		if last == "listening" {
			vmstate.PutCommand(w, vmstate.PostcopyListen())
		}
		vmstate.PutEOF(w)
		check(t, w.Flush())
		err := d.Run(t.Context(), stream{&b})
		if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), last) {
			t.Errorf("%s: %v", last, err)
		}
		if _, n := dst.runs(); n > 0 {
			t.Errorf("%s: the guest has run", last)
		}
		check(t, dst.lazy.Close())
	}
}

func TestWithoutAnotherConnectionPostcopyIsPaused(t *testing.T) {
	m := newMove(t, 3)
	a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	m.dst.onRun = a.Break
	ended := make(chan error, 1)
	go func() { ended <- m.destination.Run(context.Background(), b) }()
	// The source sends nothing after the guest, since nobody asks.
	src := m.source.Run(context.Background(), &held{Conn: a, asked: make(chan struct{})})
	dst := <-ended
	if !errors.Is(dst, ErrPaused) || !errors.Is(src, ErrPaused) && !errors.Is(src, ErrUnknown) {
		t.Errorf("%v, %v", src, dst)
	}
	if running, _ := m.dst.runs(); !running {
		t.Error("the destination's guest does not run")
	}
	if running, _ := m.src.runs(); running {
		t.Error("the source's guest runs")
	}
	check(t, m.dst.lazy.Close())
}

// stream is a connection that brings what was recorded, and takes anything.
type stream struct{ io.Reader }

func (stream) Write(p []byte) (int, error) { return len(p), nil }
func (stream) Close() error                { return nil }

// recorded keeps what a source sends.
type recorded struct {
	*colotest.Conn
	sent *bytes.Buffer
}

func (r recorded) Write(p []byte) (int, error) {
	r.sent.Write(p)
	return r.Conn.Write(p)
}

// record returns what a source sends in a whole migration.
func record(t testing.TB, postcopy bool) []byte {
	t.Helper()
	m := newMove(t, 8)
	if !postcopy {
		m = newPrecopy(t, 8)
	}
	a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	var sent bytes.Buffer
	ended := make(chan error, 1)
	go func() { ended <- m.destination.Run(context.Background(), b) }()
	check(t, m.source.Run(context.Background(), recorded{a, &sent}), <-ended)
	m.vcpu.done.Wait()
	check(t, m.dst.lazy.Close())
	return sent.Bytes()
}

// FuzzDestination gives a destination what no source sends.
func FuzzDestination(f *testing.F) {
	for _, postcopy := range []bool{false, true} {
		p := record(f, postcopy)
		f.Add(p, postcopy)
		f.Add(p[:len(p)/2], postcopy)
		for i := len(p) - 400; i < len(p); i += 40 {
			q := bytes.Clone(p)
			q[i] ^= 0x41
			f.Add(q, postcopy)
		}
		for _, q := range damage.Copies(1, 20, records(f, p, postcopy)) {
			f.Add(q, postcopy)
		}
	}
	f.Fuzz(runsWithAllOrNot)
}

// runsWithAllOrNot gives a destination a stream: it returns, and a guest of which anything is
// missing does not run but in postcopy.
func runsWithAllOrNot(t *testing.T, p []byte, postcopy bool) {
	t.Helper()
	g := newTarget(t)
	d := NewDestination(DestinationConfig{
		VM: g, State: &g.state, Memory: g.lazy, Blocks: g.blocks, Machine: "test", Postcopy: postcopy,
	})
	err := d.Run(context.Background(), stream{bytes.NewReader(p)})
	running, _ := g.runs()
	if running != (err == nil || errors.Is(err, ErrPaused) && d.Stats.Postcopy) && !(err != nil && d.Stats.Postcopy) {
		t.Errorf("the guest runs: %v, after %v", running, err)
	}
	if err == nil && d.Stats.Postcopy && g.lazy.Missing() > 0 {
		t.Error("pages are missing and there is no error")
	}
	check(t, g.lazy.Close())
}

func TestADestinationGetsWhatASourceHasSent(t *testing.T) {
	p := record(t, true)
	g := newTarget(t)
	d := NewDestination(DestinationConfig{VM: g, State: &g.state, Memory: g.lazy, Blocks: g.blocks, Postcopy: true})
	check(t, d.Run(context.Background(), stream{bytes.NewReader(p)}), g.lazy.Close())
	if n := g.lazy.Missing(); n != 0 {
		t.Errorf("%d pages are missing", n)
	}
	// The end of it is lost: the guest runs, and what is missing is missing.
	g = newTarget(t)
	d = NewDestination(DestinationConfig{VM: g, State: &g.state, Memory: g.lazy, Blocks: g.blocks, Postcopy: true})
	short := p[:len(p)-20-2*ram.PageSize]
	err := d.Run(context.Background(), stream{bytes.NewReader(short)})
	// Or it has not, where the end of the stream was met before it was let run.
	if running, _ := g.runs(); err == nil || errors.Is(err, ErrPaused) != running || g.lazy.Missing() == 0 {
		t.Errorf("%v; the guest runs: %v; %d pages missing", err, running, g.lazy.Missing())
	}
	check(t, g.lazy.Close())
}

func TestADestinationThatRefusesHasItsDevicesOfBefore(t *testing.T) {
	p := record(t, false)
	g := newTarget(t)
	d := NewDestination(DestinationConfig{VM: g, State: &g.state, Memory: g.lazy, Blocks: g.blocks})
	// The description of the devices, behind all of them, is cut short.
	err := d.Run(context.Background(), stream{bytes.NewReader(p[:len(p)-3])})
	if running, _ := g.runs(); err == nil || running || g.device.n != 0 {
		t.Errorf("%v; the guest runs: %v; the device has %#x", err, running, g.device.n)
	}
	check(t, g.lazy.Close())
}
