package standby_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// viewed is a guest of the vectors' machine, 256 pages, that takes checkpoints.
type viewed struct {
	*standby.Copy
	t    *testing.T
	blob []byte
}

func newViewed(t *testing.T) *viewed {
	t.Helper()
	g := standby.New(standby.Config{})
	t.Cleanup(func() { g.Close() })
	if err := g.Read(qemufile.NewReader(bytes.NewReader(vector(t, "none-initial.bin")))); err != nil {
		t.Fatal(err)
	}
	return &viewed{g, t, vector(t, "none-checkpoint.bin")[4+5+8+5+1+12:]}
}

// checkpoint replaces pages from one on.
func (g *viewed) checkpoint(from int, fills ...byte) {
	g.t.Helper()
	var records [][]byte
	for i, fill := range fills {
		kind, data := byte(0x08), bytes.Repeat([]byte{fill}, ram.PageSize)
		if fill == 0 {
			kind, data = 0x02, []byte{0}
		}
		head := uint64(from+i)*ram.PageSize | uint64(kind)
		if i == 0 {
			records = append(records, named(head, "ram", data...))
		} else {
			records = append(records, page(head|0x20, data...))
		}
	}
	live := slices.Concat([]byte{3}, be(noneRAM), slices.Concat(records...), be64(0x10), []byte{0x7e}, be(noneRAM), []byte{0})
	for _, err := range []error{g.Load(qemufile.NewReader(bytes.NewReader(live)), refuse), g.LoadDevices(g.blob, refuse), g.Flush(), g.Commit(), g.Settle()} {
		if err != nil {
			g.t.Fatal(err)
		}
	}
}

func (g *viewed) put() []byte {
	g.t.Helper()
	var b bytes.Buffer
	if err := g.Put(qemufile.NewWriter(&b)); err != nil {
		g.t.Fatal(err)
	}
	return b.Bytes()
}

// during calls fn before each write that reaches it.
type during struct {
	bytes.Buffer
	fn func()
}

func (d *during) Write(p []byte) (int, error) {
	d.fn()
	return d.Buffer.Write(p)
}

// A view is the checkpoint that it was made of, byte for byte, whatever pages later
// checkpoints replace before it is read, and while it is.
func TestAViewIsItsCheckpointWhileLaterOnesCome(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 1))
		g := newViewed(t)
		change := func() {
			fills := make([]byte, 1+rnd.IntN(40))
			for i := range fills {
				fills[i] = byte(rnd.IntN(4))
			}
			g.checkpoint(rnd.IntN(256-len(fills)), fills...)
		}
		for range 5 {
			change()
		}
		want := g.put()
		in, err := g.Info()
		if err != nil {
			t.Fatal(err)
		}
		v, err := g.NewView(256 * ram.PageSize)
		if err != nil {
			t.Fatal(err)
		}
		if v.Epoch() != in.Epoch {
			t.Errorf("epoch %d, not %d", v.Epoch(), in.Epoch)
		}
		for range rnd.IntN(4) {
			change()
		}
		out := &during{fn: change}
		if err := v.Put(qemufile.NewWriter(out)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(out.Bytes(), want) {
			t.Fatalf("seed %d: the view is not its checkpoint", seed)
		}
		if now := g.put(); bytes.Equal(now, want) {
			t.Fatalf("seed %d: no checkpoint has come", seed)
		}
		v.Close()
	}
}

// A view may keep so many replaced pages and no more. With one more it ends; the checkpoint
// that brought the page counts all the same.
func TestAViewThatWouldKeepTooMuchEndsAndTheCheckpointCounts(t *testing.T) {
	g := newViewed(t)
	g.checkpoint(0, 1, 1, 1)
	v, err := g.NewView(2 * ram.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	g.checkpoint(0, 2, 2)
	g.checkpoint(0, 3, 3)      // kept already
	g.checkpoint(100, 4, 4, 4) // nothing was there: costs nothing
	g.checkpoint(2, 5)         // one too many
	if err := v.Put(qemufile.NewWriter(new(bytes.Buffer))); !errors.Is(err, standby.ErrStale) {
		t.Errorf("%v", err)
	}
	p := make([]byte, 1)
	if err := g.ReadRAM("ram", 2*ram.PageSize, p); err != nil || p[0] != 5 {
		t.Errorf("%v, %v", p, err)
	}
}

// Pages that were read are not kept any more.
func TestAViewKeepsOnlyWhatIsStillToBeRead(t *testing.T) {
	g := newViewed(t)
	all := func(fill byte) { g.checkpoint(0, bytes.Repeat([]byte{fill}, 256)...) }
	all(1)
	want := g.put()
	v, err := g.NewView(192 * ram.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	n := 0
	out := &during{fn: func() {
		if n++; n == 2 { // the first pages were written
			all(2)
		}
	}}
	if err := v.Put(qemufile.NewWriter(out)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("the view is not its checkpoint")
	}
}

// Pages that the first reader had, or has, are not kept for another one.
func TestAViewIsReadOnce(t *testing.T) {
	g := newViewed(t)
	g.checkpoint(0, 1, 1, 1)
	v, err := g.NewView(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	again := func() {
		var b bytes.Buffer
		if err := v.Put(qemufile.NewWriter(&b)); !errors.Is(err, standby.ErrStale) || b.Len() > 0 {
			t.Errorf("%v, %d bytes", err, b.Len())
		}
	}
	want := g.put()
	out := &during{fn: again}
	if err := v.Put(qemufile.NewWriter(out)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(out.Bytes(), want) {
		t.Error("the view is not its checkpoint")
	}
	again()
	failing, err := g.NewView(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer failing.Close()
	broken := errors.New("broken")
	if err := failing.Put(qemufile.NewWriter(writerFunc(func([]byte) (int, error) { return 0, broken }))); !errors.Is(err, broken) {
		t.Error(err)
	}
	v = failing
	again()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestAViewEndsWithItsGuestOrWhenItIsClosed(t *testing.T) {
	g := newViewed(t)
	closed, err := g.NewView(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	closed.Close()
	if err := closed.Put(qemufile.NewWriter(new(bytes.Buffer))); !errors.Is(err, standby.ErrStale) {
		t.Errorf("closed: %v", err)
	}
	g.checkpoint(0, 1)
	v, err := g.NewView(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	out := &during{fn: func() { g.Close() }} // in the middle
	if err := v.Put(qemufile.NewWriter(out)); !errors.Is(err, standby.ErrNothing) {
		t.Errorf("guest closed: %v", err)
	}
	v.Close()
	if _, err := g.NewView(1 << 20); !errors.Is(err, standby.ErrNothing) {
		t.Errorf("of nothing: %v", err)
	}
}

// A view of a writer that hangs does not keep a checkpoint waiting.
func TestACheckpointDoesNotWaitForAViewThatIsRead(t *testing.T) {
	g := newViewed(t)
	g.checkpoint(0, 1)
	v, err := g.NewView(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	hung, ended := make(chan struct{}), make(chan error, 1)
	begun := make(chan struct{}, 1000)
	go func() {
		ended <- v.Put(qemufile.NewWriter(&during{fn: func() { begun <- struct{}{}; <-hung }}))
	}()
	<-begun
	g.checkpoint(0, 2) // or this does not return
	close(hung)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
