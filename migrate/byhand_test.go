package migrate

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A byHand is a source that a test writes by hand, behind the package with a guest that goes
// before any of its memory.
type byHand struct {
	conn *colotest.Conn
	w    *qemufile.Writer
	r    *qemufile.Reader
}

func newByHand(c *colotest.Conn) *byHand {
	return &byHand{c, qemufile.NewWriter(c), qemufile.NewReader(c)}
}

// handOver sends the guest.
func (h *byHand) handOver(t *testing.T, g *guest) {
	t.Helper()
	w := h.w
	g.state.NewSession()
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "test"})
	vmstate.PutCommand(w, vmstate.OpenReturnPath())
	vmstate.PutCommand(w, vmstate.PostcopyAdvise{RAM: true, PageSizes: ram.PageSizes(g.blocks), TargetPageSize: page}.Command())
	check(t, g.state.SaveSetup(w), g.state.SaveCompleteInPostcopy(w), g.saver.BeginPostcopy(w))
	var nested bytes.Buffer
	d := qemufile.NewWriter(&nested)
	vmstate.PutCommand(d, vmstate.PostcopyListen())
	check(t, g.state.SaveDevices(d))
	vmstate.PutCommand(d, vmstate.PostcopyRun())
	check(t, d.Flush())
	vmstate.PutPackaged(w, nested.Bytes())
	check(t, w.Flush())
}

// answer returns the next message of the destination.
func (h *byHand) answer(t *testing.T) vmstate.Return {
	t.Helper()
	m, err := vmstate.ReadReturn(h.r, 0)
	check(t, err)
	return m
}

// What was asked for on a connection that is lost is asked for on the next one, when the
// source says that it goes on, and not only sent some time with the rest.
func TestMemoryThatWasAskedForIsAskedForAgain(t *testing.T) {
	src, dst := newSource(t, 12), newTarget(t)
	var touching sync.WaitGroup
	dst.onRun = func() { touching.Go(func() { _ = dst.lazy.Ensure("pc.ram", 5*page, 1) }) }
	a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	next, nextB := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	conns := []Conn{nextB}
	d := NewDestination(DestinationConfig{
		VM: dst, State: &dst.state, Memory: dst.lazy, Blocks: dst.blocks, Postcopy: true,
		Reconnect: func(context.Context, error) (Conn, error) {
			if len(conns) == 0 {
				return nil, errors.New("that was the last connection")
			}
			c := conns[0]
			conns = conns[1:]
			return c, nil
		},
	})
	ended := make(chan error, 1)
	go func() { ended <- d.Run(t.Context(), b) }()
	first, second := newByHand(a), newByHand(next)
	first.handOver(t, src)
	asked := first.answer(t)
	first.conn.Break()
	vmstate.PutCommand(second.w, vmstate.PostcopyResume())
	vmstate.PutCommand(second.w, vmstate.Ping(9))
	check(t, second.w.Flush())
	want := []vmstate.Return{
		{Type: vmstate.ReturnResumeAck, Value: 1},
		{Type: vmstate.ReturnRequestBlock, Block: "pc.ram", Start: 5 * page, Length: page},
		{Type: vmstate.ReturnPong, Value: 9},
	}
	for i, m := range want {
		if got := second.answer(t); got.Type != m.Type || got.Value != m.Value || got.Block != m.Block || got.Start != m.Start || got.Length != m.Length {
			t.Errorf("answer %d is %+v, want %+v", i, got, m)
			break
		}
	}
	if asked.Type != vmstate.ReturnRequestBlock || asked.Start != 5*page {
		t.Errorf("before, %+v was asked for", asked)
	}
	second.conn.Break()
	if err := <-ended; !errors.Is(err, ErrPaused) {
		t.Error(err)
	}
	check(t, dst.lazy.Close())
	touching.Wait()
}

// inPostcopy returns the source by hand of a guest that runs at dst before its memory has come. How
// the destination ends is sent to ended.
func inPostcopy(t *testing.T) (h *byHand, dst *guest, ended <-chan error) {
	t.Helper()
	src, dst := newSource(t, 13), newTarget(t)
	ran, end := make(chan struct{}), make(chan error, 1)
	dst.onRun = func() { close(ran) }
	a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	d := NewDestination(DestinationConfig{VM: dst, State: &dst.state, Memory: dst.lazy, Blocks: dst.blocks, Postcopy: true})
	go func() { end <- d.Run(t.Context(), b) }()
	h = newByHand(a)
	h.handOver(t, src)
	<-ran
	return h, dst, end
}

// A package brings the devices. When the guest runs it has them, and only memory may come.
func TestASecondPackageIsRefused(t *testing.T) {
	h, dst, ended := inPostcopy(t)
	id, _ := dst.state.PeerID(ram.SectionName, 0)
	var nested bytes.Buffer
	w := qemufile.NewWriter(&nested)
	(vmstate.Header{Type: vmstate.SectionPart, ID: id}).Put(w)
	w.PutBE64(0x02) // page 0 of a block is zeros
	w.PutCountedString("pc.ram")
	w.PutByte(0)
	w.PutBE64(0x10)
	vmstate.PutFooter(w, id)
	check(t, w.Flush())
	vmstate.PutPackaged(h.w, nested.Bytes())
	vmstate.PutEOF(h.w)
	check(t, h.w.Flush())
	if err := <-ended; !errors.Is(err, ErrPaused) || !errors.Is(err, vmstate.ErrCommand) {
		t.Error(err)
	}
	if placed, _ := dst.lazy.Placed(); placed != 0 {
		t.Errorf("%d pages of it were placed", placed)
	}
	check(t, dst.lazy.Close())
}

// The guest runs, so that of the live devices none but memory may come.
func TestASectionOfAnotherDeviceIsRefusedInPostcopy(t *testing.T) {
	h, dst, ended := inPostcopy(t)
	id, _ := dst.state.PeerID(ram.SectionName, 0)
	(vmstate.Header{Type: vmstate.SectionPart, ID: id + 1}).Put(h.w)
	h.w.PutBE64(0x02) // page 0 of a block is zeros
	h.w.PutCountedString("pc.ram")
	h.w.PutByte(0)
	h.w.PutBE64(0x10)
	vmstate.PutFooter(h.w, id)
	vmstate.PutEOF(h.w)
	check(t, h.w.Flush())
	if err := <-ended; !errors.Is(err, ErrPaused) || !errors.Is(err, vmstate.ErrUnknownSection) {
		t.Error(err)
	}
	if placed, _ := dst.lazy.Placed(); placed != 0 {
		t.Errorf("%d pages of it were placed", placed)
	}
	check(t, dst.lazy.Close())
}
