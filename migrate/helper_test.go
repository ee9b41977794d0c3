package migrate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/mapping"
	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

func TestMain(m *testing.M) {
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}

const page = ram.PageSize

// A guest is memory and one device, on either side.
type guest struct {
	blocks []ram.Block
	state  vmstate.Registry
	saver  *ram.LazySaver
	lazy   *ram.Lazy
	device device

	mu      sync.Mutex
	running bool
	ran     int // how often it was resumed
	onRun   func()
	onPause func()
	before  func() // is called when it is to be resumed

	// Of a source: what its vCPUs do between two reads of the log.
	r     *rand.Rand
	dirty map[string]ram.Bitmap
	write int // pages

	logging bool // the log is on
	started int  // how often it was
}

// device is a device that knows whether it may be applied.
type device struct {
	n     uint64
	after func() error
}

func (d *device) VMState(f *vmstate.Fields) { f.Uint64("n", &d.n) }
func (d *device) PostLoad(uint32) error {
	if d.after != nil {
		return d.after()
	}
	return nil
}

// newGuest returns a guest with memory of its own.
func newGuest(t testing.TB) *guest {
	t.Helper()
	g := &guest{dirty: make(map[string]ram.Bitmap)}
	for name, n := range map[string]int{"pc.ram": 96, "vga.vram": 8} {
		mem, err := mapping.New(n * page)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { mapping.Free(mem) })
		g.blocks = append(g.blocks, ram.Block{Name: name, Host: mem})
		g.dirty[name] = ram.NewBitmap(n)
	}
	slices.SortFunc(g.blocks, func(a, b ram.Block) int { return bytes.Compare([]byte(a.Name), []byte(b.Name)) })
	return g
}

// newSource returns a running guest that writes some pages in each pass.
func newSource(t testing.TB, seed uint64) *guest {
	t.Helper()
	g := newGuest(t)
	g.r, g.running, g.write = rand.New(rand.NewPCG(seed, 2)), true, 24
	for _, b := range g.blocks {
		for i := range len(b.Host) / page {
			if i%5 != 4 { // some pages stay zero
				g.fill(b.Host[i*page : (i+1)*page])
			}
		}
	}
	g.device.n = 0x1234
	g.saver = ram.NewLazySaver(g.blocks, g, ram.SaverConfig{})
	check(t, g.saver.Register(&g.state), g.state.Register(vmstate.Entry{Name: "device", Version: 1, MinVersion: 1}, &g.device))
	return g
}

// newTarget returns a guest that waits to be filled, or skips the test.
func newTarget(t testing.TB) *guest {
	t.Helper()
	g := newGuest(t)
	var err error
	g.lazy, err = ram.NewLazy(g.blocks)
	check(t, err)
	require.Granted(t, require.Userfaultfd, g.lazy.Probe())
	check(t, g.lazy.Register(&g.state), g.state.Register(vmstate.Entry{Name: "device", Version: 1, MinVersion: 1}, &g.device))
	return g
}

func check(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func (g *guest) fill(p []byte) {
	for i := 0; i < len(p); i += 64 { // enough to tell any two pages apart
		p[i], p[i+1], p[i+63] = byte(g.r.Uint32()), byte(g.r.Uint32()), 1
	}
}

// ReadDirty implements ram.DirtyLog: the guest has just written some pages, if it runs.
func (g *guest) ReadDirty(block string, bitmap []uint64) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running && block == g.blocks[0].Name {
		for range g.write {
			b := &g.blocks[g.r.IntN(len(g.blocks))]
			i := g.r.IntN(len(b.Host) / page)
			if p := b.Host[i*page : (i+1)*page]; g.r.IntN(4) == 0 {
				clear(p)
			} else {
				g.fill(p)
			}
			g.dirty[b.Name].Set(i)
		}
	}
	ram.Bitmap(bitmap).Or(g.dirty[block])
	clear(g.dirty[block])
	return nil
}

// StartDirtyLog implements ram.LogSwitch, as StopDirtyLog does.
func (g *guest) StartDirtyLog() error {
	g.logging = true
	g.started++
	return nil
}

func (g *guest) StopDirtyLog() error {
	g.logging = false
	return nil
}

func (g *guest) Pause(context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = false
	if g.onPause != nil {
		g.onPause()
	}
	return nil
}

func (g *guest) Resume(ctx context.Context) error {
	if g.before != nil {
		g.before()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = true
	g.ran++
	if g.onRun != nil {
		g.onRun()
	}
	return nil
}

// runs reports whether the guest runs, and how often it was resumed.
func (g *guest) runs() (bool, int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.running, g.ran
}

// A vcpu touches all memory of a target in a random order, compares it with what it should
// be, and writes some of it.
type vcpu struct {
	g       *guest
	want    func() [][]byte
	written map[[2]int]byte
	wrong   error
	done    sync.WaitGroup
}

// run starts it.
func (v *vcpu) run(seed uint64) {
	v.written = make(map[[2]int]byte)
	v.done.Go(func() {
		r := rand.New(rand.NewPCG(seed, 3))
		var order [][2]int
		for b := range v.g.blocks {
			for i := range len(v.g.blocks[b].Host) / page {
				order = append(order, [2]int{b, i})
			}
		}
		r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		want := v.want()
		for _, p := range order {
			b, at := &v.g.blocks[p[0]], p[1]*page
			if err := v.g.lazy.Ensure(b.Name, uint64(at)+100, 8); err != nil {
				v.wrong = err
				return
			}
			if !bytes.Equal(b.Host[at:at+page], want[p[0]][at:at+page]) {
				v.wrong = fmt.Errorf("block %q page %d is not what the source had", b.Name, p[1])
				return
			}
			if r.IntN(3) == 0 {
				b.Host[at]++
				v.written[p] = b.Host[at]
			}
		}
	})
}

// memory copies the guest's memory.
func (g *guest) memory() (m [][]byte) {
	for _, b := range g.blocks {
		m = append(m, bytes.Clone(b.Host))
	}
	return m
}

// held is a source's connection that lets nothing through behind the package, until the
// destination has asked for memory.
type held struct {
	*colotest.Conn
	tail   []byte // of what was written
	packed bool   // the package was
	behind int64  // how many bytes had been written then
	read   []byte
	once   sync.Once
	asked  chan struct{}
}

func (h *held) Write(p []byte) (int, error) {
	if h.packed {
		select {
		case <-h.asked:
		case <-time.After(time.Minute):
			return 0, errors.New("nothing was asked for")
		}
	}
	h.tail = append(h.tail, p...)
	if !h.packed {
		h.behind += int64(len(p))
	}
	h.packed = h.packed || bytes.HasSuffix(h.tail, []byte{8, 0, 2, 0, 4, 0, 0, 0, 4}) // PING 4
	h.tail = h.tail[max(0, len(h.tail)-16):]
	return h.Conn.Write(p)
}

func (h *held) Read(p []byte) (int, error) {
	n, err := h.Conn.Read(p)
	h.read = append(h.read, p[:n]...)
	if err != nil || bytes.Contains(h.read, []byte("ram")) { // of either block
		h.once.Do(func() { close(h.asked) })
	}
	return n, err
}

// A move is one migration of a guest, over connections that break as planned.
type move struct {
	t        testing.TB
	src, dst *guest
	vcpu     *vcpu
	flows    [][2]colotest.Flow // of each connection, forth and back; then they hold
	sent     [][2]colotest.Traffic

	hold        bool   // the source sends nothing after the guest until it is asked for memory
	behind      int64  // with hold: where in the stream that is
	paused      func() // is called when a connection has broken for both
	last        int    // after how many connections the source gives up; 0: it does not
	source      *Source
	destination *Destination
	srcErr      error
	dstErr      error
}

// newMove prepares a migration by postcopy.
func newMove(t testing.TB, seed uint64, flows ...[2]colotest.Flow) *move {
	t.Helper()
	m := &move{t: t, src: newSource(t, seed), dst: newTarget(t), flows: flows}
	var snapshot [][]byte
	m.src.onPause = func() { snapshot = m.src.memory() }
	m.vcpu = &vcpu{g: m.dst, want: func() [][]byte { return snapshot }}
	m.dst.onRun = func() { m.vcpu.run(seed) }
	m.source = NewSource(SourceConfig{
		VM: m.src, State: &m.src.state, Memory: m.src.saver, Blocks: m.src.blocks,
		Machine: "test", Postcopy: true, MaxDowntime: 1,
	})
	m.destination = NewDestination(DestinationConfig{
		VM: m.dst, State: &m.dst.state, Memory: m.dst.lazy, Blocks: m.dst.blocks,
		Machine: "test", Postcopy: true,
	})
	return m
}

// run carries it out.
func (m *move) run() {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var pairs [][2]*colotest.Conn
	connect := func() (a, b *colotest.Conn) {
		var f [2]colotest.Flow
		if len(m.flows) > len(pairs) {
			f = m.flows[len(pairs)]
		}
		a, b = colotest.Pipe(f[0], f[1])
		pairs = append(pairs, [2]*colotest.Conn{a, b})
		return a, b
	}
	next, waits := make(chan *colotest.Conn), make(chan struct{})
	ended := make(chan struct{})
	m.source.cfg.Reconnect = func(ctx context.Context, _ error) (Conn, error) {
		if len(pairs) == m.last {
			return nil, errors.New("that was the last connection")
		}
		a, b := connect()
		select {
		case waits <- struct{}{}:
			if m.paused != nil {
				m.paused()
			}
		case <-ended:
			return nil, errors.New("the destination has ended")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		select {
		case next <- b:
			return a, nil
		case <-ended:
			return nil, errors.New("the destination has ended")
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	m.destination.cfg.Reconnect = func(ctx context.Context, _ error) (Conn, error) {
		select {
		case <-waits:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		select {
		case c := <-next:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	a, b := connect()
	var group sync.WaitGroup
	group.Go(func() {
		m.dstErr = m.destination.Run(ctx, b)
		close(ended)
	})
	if m.hold {
		h := &held{Conn: a, asked: make(chan struct{})}
		m.srcErr = m.source.Run(ctx, h)
		m.behind = h.behind
	} else {
		m.srcErr = m.source.Run(ctx, a)
	}
	if errors.Is(m.srcErr, ErrPaused) || m.last > 0 {
		cancel() // as whoever owns both would, once one has given up
	}
	group.Wait()
	if err := ctx.Err(); errors.Is(err, context.DeadlineExceeded) {
		m.t.Fatal("the migration hangs")
	}
	m.vcpu.done.Wait()
	check(m.t, m.dst.lazy.Close())
	for _, p := range pairs {
		m.sent = append(m.sent, [2]colotest.Traffic{p[0].Sent(), p[1].Sent()})
	}
}

// arrived fails unless the guest runs at the destination, with all its memory, and the
// source knows.
func (m *move) arrived() {
	m.t.Helper()
	check(m.t, m.srcErr)
	m.whole()
}

// whole fails unless the guest runs at the destination, with all its memory.
func (m *move) whole() {
	m.t.Helper()
	check(m.t, m.dstErr, m.vcpu.wrong)
	if running, _ := m.src.runs(); running {
		m.t.Error("the source's guest runs")
	}
	if running, n := m.dst.runs(); !running || n != 1 {
		m.t.Errorf("the destination's guest runs: %v, after %d resumes", running, n)
	}
	if m.dst.device.n != 0x1234 {
		m.t.Errorf("the device has %#x", m.dst.device.n)
	}
	want := m.vcpu.want()
	for p, v := range m.vcpu.written {
		want[p[0]][p[1]*page] = v
	}
	for i, b := range m.dst.blocks {
		if !bytes.Equal(b.Host, want[i]) {
			m.t.Errorf("block %q is not what the guest made of it", b.Name)
		}
	}
}
