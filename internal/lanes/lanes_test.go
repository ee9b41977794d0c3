package lanes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

func TestASectionHasArrivedWhenBothSidesHaveSynchronised(t *testing.T) {
	for _, m := range []multifd.Method{multifd.None, multifd.Zlib} {
		for _, lanes := range []int{1, 2, 5} {
			t.Run(fmt.Sprint(m, lanes), func(t *testing.T) {
				x := newRig(t, lanes, func(s *SenderConfig, _ *ReceiverConfig) { s.Method = m })
				for n := range 3 {
					pages := []int{300, 0, 3}[n]
					if err := x.section(n, pages); err != nil {
						t.Fatal(err)
					}
					for i := range pages {
						block := "a"
						if i > pages/2 {
							block = "b"
						}
						if got := x.pages[fmt.Sprint(block, i*ram.PageSize)]; !bytes.Equal(got, pageOf(n, i)) {
							t.Fatalf("section %d: page %d is %.16q", n, i, got)
						}
					}
				}
				if a, b := x.s.Bytes(), x.v.Bytes(); a != b || a == 0 {
					t.Errorf("%d bytes have left, %d come", a, b)
				}
			})
		}
	}
}

// Nothing is placed before a section begins, nor after it has ended, whatever comes.
func TestPagesArePlacedWithinASectionOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newRig(t, 2, nil)
		sent := make(chan error)
		go func() {
			for n := range 2 {
				for i := range 300 {
					if err := x.s.SendPage("a", uint64(i)*ram.PageSize, pageOf(n, i)); err != nil {
						sent <- err
						return
					}
				}
				if err := x.s.Sync(); err != nil { // and the next one begins before anybody has read that
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		synctest.Wait()
		if n := x.count(); n != 0 {
			t.Fatalf("%d pages were placed before the section", n)
		}
		for n := range 2 {
			if err := errors.Join(x.v.Begin(), x.v.Sync()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if got := x.pages["a0"]; !bytes.Equal(got, pageOf(n, 0)) {
				t.Fatalf("after section %d the page is %.16q", n, got)
			}
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	})
}

// lane returns the bytes of one lane, after which nothing comes.
func lane(t testing.TB, fn func(w *qemufile.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	fn(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// canned is a connection that ends.
type canned struct{ io.Reader }

func (canned) Close() error { return nil }

func TestALaneThatLiesEndsAll(t *testing.T) {
	init := func(w *qemufile.Writer) { multifd.Init{UUID: id}.Put(w) }
	page := make([]byte, ram.PageSize)
	odd := errors.New("no such page")
	for _, x := range []struct {
		name  string
		bytes []byte
		fail  error
		want  error
		words string
	}{
		{"nothing", nil, nil, io.EOF, ""},
		{"half an init", lane(t, init)[:30], nil, io.ErrUnexpectedEOF, ""},
		{"of another session", lane(t, multifd.Init{}.Put), nil, multifd.ErrUUID, ""},
		{"a number that is too high", lane(t, multifd.Init{UUID: id, Channel: 2}.Put), nil, multifd.ErrChannel, ""},
		{"no packet", lane(t, init), nil, io.ErrUnexpectedEOF, ""},
		{"a page and no end", lane(t, func(w *qemufile.Writer) {
			init(w)
			(&multifd.Packet{Block: "a", Normal: []uint64{0}, Data: page}).Put(w)
		}), nil, io.ErrUnexpectedEOF, ""},
		{"a page that is none", lane(t, func(w *qemufile.Writer) {
			init(w)
			(&multifd.Packet{Block: "a", Normal: []uint64{0}, Data: page, Sync: true}).Put(w)
		}), odd, odd, ""},
		{"zeros that are none", lane(t, func(w *qemufile.Writer) {
			init(w)
			(&multifd.Packet{Block: "a", Zero: []uint64{0}, Sync: true}).Put(w)
		}), odd, odd, ""},
		{"an unknown method", lane(t, func(w *qemufile.Writer) {
			init(w)
			(&multifd.Packet{Block: "a", Method: multifd.Zstd, Normal: []uint64{0}, Data: page}).Put(w)
		}), nil, multifd.ErrMethod, ""},
		{"no compressed page", lane(t, func(w *qemufile.Writer) {
			init(w)
			(&multifd.Packet{Block: "a", Method: multifd.Zlib, Normal: []uint64{0}, Data: page}).Put(w)
		}), nil, multifd.ErrDecode, ""},
		{"a device", lane(t, func(w *qemufile.Writer) {
			init(w)
			(&multifd.Packet{Device: &multifd.Device{Name: "gpu"}, Data: page}).Put(w)
		}), nil, nil, `device "gpu"`},
		{"rubbish", append(lane(t, init), make([]byte, 4<<10)...), nil, multifd.ErrMagic, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := memory{fail: x.fail}
			failed := make(chan error, 2)
			good, _ := net.Pipe()
			v := NewReceiver(ReceiverConfig{
				Conns: []io.ReadCloser{good, canned{bytes.NewReader(x.bytes)}},
				ID:    id, Place: m.place, Fail: func(err error) { failed <- err },
			})
			v.Start()
			defer v.Close()
			err := errors.Join(v.Begin(), v.Sync())
			if err == nil || x.want != nil && !errors.Is(err, x.want) || !strings.Contains(err.Error(), x.words) {
				t.Errorf("%v, want %v %s", err, x.want, x.words)
			}
			if told := <-failed; !errors.Is(v.Err(), told) {
				t.Errorf("told %v, it says %v", told, v.Err())
			}
			if err := v.Begin(); err == nil {
				t.Error("another section begins")
			}
			v.Close()
			if len(failed) > 0 {
				t.Error("told twice")
			}
		})
	}
}

func TestTwoLanesOfOneNumberAreRefused(t *testing.T) {
	p := lane(t, multifd.Init{UUID: id}.Put)
	v := NewReceiver(ReceiverConfig{Conns: []io.ReadCloser{canned{bytes.NewReader(p)}, canned{bytes.NewReader(p)}}, ID: id})
	v.Start()
	defer v.Close()
	if err := errors.Join(v.Begin(), v.Sync()); !errors.Is(err, multifd.ErrChannel) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

// Halt waits for the pages that are being placed, and there are none after it.
func TestNothingIsPlacedAfterHalt(t *testing.T) {
	placing, goOn := make(chan struct{}), make(chan struct{})
	var placed atomic.Int64
	x := newRig(t, 1, func(_ *SenderConfig, v *ReceiverConfig) {
		v.Place = func(string, uint64, []byte) error {
			if placed.Load() == 0 {
				close(placing)
				<-goOn
			}
			placed.Add(1)
			return nil
		}
	})
	sent := make(chan error)
	go func() {
		var err error
		for i := 0; err == nil; i++ {
			err = x.s.SendPage(strings.Repeat("a", 1+i%2), 0, pageOf(0, i)) // each a packet
		}
		sent <- err
	}()
	if err := x.v.Begin(); err != nil {
		t.Fatal(err)
	}
	<-placing
	halted := make(chan struct{})
	go func() { x.v.Halt(); close(halted) }()
	<-x.v.bad // it has begun
	close(goOn)
	<-halted
	if n := placed.Load(); n != 1 {
		t.Errorf("%d pages were placed before it returned", n)
	}
	if err := x.v.Sync(); err == nil {
		t.Error("the section has arrived")
	}
	x.v.Close()
	if n := placed.Load(); n != 1 {
		t.Errorf("%d pages were placed in all", n)
	}
	if err := <-sent; err == nil {
		t.Error("the sender has not heard of the end")
	}
}

// sink takes everything.
type sink struct{}

func (sink) Write(p []byte) (int, error) { return len(p), nil }

func (sink) Close() error { return nil }

func TestSendingPagesAllocatesNothing(t *testing.T) {
	p := &patience{d: time.Hour, end: func(bool, int) error { return nil }}
	s, err := NewSender(SenderConfig{Conns: []io.WriteCloser{sink{}, sink{}}, Limit: p})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.Close()
	page := pageOf(0, 0)
	if n := testing.AllocsPerRun(50, func() {
		for i := range 1000 {
			if err := s.SendPage("a", uint64(i)*ram.PageSize, page); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations a section", n)
	}
}

// FuzzReceiver takes a lane of anything: it ends in an error or at the end of the
// section, and places whole pages only.
func FuzzReceiver(f *testing.F) {
	f.Add(lane(f, func(w *qemufile.Writer) {
		multifd.Init{UUID: id}.Put(w)
		(&multifd.Packet{Block: "a", Normal: []uint64{0}, Zero: []uint64{4096}, Data: make([]byte, ram.PageSize)}).Put(w)
		(&multifd.Packet{Sync: true}).Put(w)
	}))
	f.Fuzz(func(t *testing.T, p []byte) {
		v := NewReceiver(ReceiverConfig{
			Conns: []io.ReadCloser{canned{bytes.NewReader(p)}}, ID: id,
			Place: func(_ string, off uint64, page []byte) error {
				if off%ram.PageSize != 0 || page != nil && len(page) != ram.PageSize {
					t.Errorf("%d bytes at %#x", len(page), off)
				}
				return nil
			},
		})
		v.Start()
		defer v.Close()
		for range 3 {
			if errors.Join(v.Begin(), v.Sync()) != nil {
				return
			}
		}
	})
}
