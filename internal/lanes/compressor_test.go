package lanes

import (
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

func TestACompressorThatCannotBeMadeLeavesTheLanesToTheCaller(t *testing.T) {
	a, b := net.Pipe()
	defer a.Close()
	_, err := NewSender(SenderConfig{Conns: []io.WriteCloser{a}, Method: multifd.Zstd})
	if !errors.Is(err, multifd.ErrMethod) {
		t.Error(err)
	}
	go b.Write([]byte{1})
	if _, err := a.Read(make([]byte, 1)); err != nil {
		t.Errorf("the connection is not open any more: %v", err)
	}
}

// open counts the compressors that it makes, and those that are closed. After so many it
// makes no more.
type open struct{ made, closed, most atomic.Int64 }

var errNoMore = errors.New("no more of them")

func (o *open) compressor(m multifd.Method) (multifd.Compressor, error) {
	if n := o.made.Add(1); o.most.Load() > 0 && n > o.most.Load() {
		o.made.Add(-1)
		return nil, errNoMore
	}
	z, err := multifd.CompressZlib(m)
	return closing{z, o}, err
}

type closing struct {
	multifd.Compressor
	of *open
}

func (c closing) Close() error {
	c.of.closed.Add(1)
	return nil
}

func TestEachCompressorIsClosedWithItsLane(t *testing.T) {
	var o open
	zlib := func(s *SenderConfig, r *ReceiverConfig) {
		s.Method, s.Compressor, r.Decoder = multifd.Zlib, o.compressor, nil
	}
	x := newRig(t, 3, zlib)
	if err := x.section(0, 500); err != nil {
		t.Fatal(err)
	}
	x.s.Close()
	if made, closed := o.made.Load(), o.closed.Load(); made != 6 || closed != 6 {
		t.Errorf("%d were made, and %d closed", made, closed)
	}
	// A Sender that never starts has none.
	if _, err := NewSender(SenderConfig{Conns: []io.WriteCloser{sink{}, sink{}}, Method: multifd.Zlib, Compressor: o.compressor}); err != nil {
		t.Fatal(err)
	}
	if made, closed := o.made.Load(), o.closed.Load(); made != closed {
		t.Errorf("%d were made, and %d closed", made, closed)
	}
	// What cannot be made when its lane begins breaks the lanes.
	o.most.Store(o.made.Load() + 3)
	y := newRig(t, 2, zlib)
	if err := y.section(0, 500); !errors.Is(err, errNoMore) {
		t.Errorf("a section without a compressor: %v", err)
	}
	y.s.Close()
	if made, closed := o.made.Load(), o.closed.Load(); made != closed {
		t.Errorf("%d were made, and %d closed", made, closed)
	}
}
