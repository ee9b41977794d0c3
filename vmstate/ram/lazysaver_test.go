package ram

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func TestALazySaverSendsWhatIsAskedForFirst(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 600), pages(t, "vga", 4))
	r := rand.New(rand.NewPCG(1, 1))
	for host := g.blocks[0].Host; len(host) > 0; host = host[PageSize:] {
		copy(host, randomPage(r))
	}
	s := NewLazySaver(g.blocks, g, SaverConfig{})
	l := newLink(t)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(s.SaveSetup(l.w))
	for done := false; !done; {
		var err error
		done, err = s.SaveIterate(l.w)
		check(err)
	}
	check(l.w.Flush())
	w := &Walker{Format: Format{Postcopy: true}}
	for begin := reader(bytes.Clone(l.buf.Bytes())); begin.Buffered() > 0; {
		check(w.Walk(begin, func(*Record) error { return nil }))
	}
	g.dirty["ram"].SetRange(0, 600)
	check(s.BeginPostcopy(l.w))
	check(l.w.Flush())
	l.buf.Reset()
	check(s.Request("ram", 500*PageSize, 2*PageSize))
	check(s.Request("ram", 500*PageSize, PageSize)) // twice is once
	check(s.Request("vga", 0, PageSize))            // was sent, and not written again
	for _, bad := range []error{s.Request("rom", 0, PageSize), s.Request("ram", 600*PageSize, PageSize), s.Request("ram", ^uint64(0), 4096)} {
		if !errors.Is(bad, ErrUnknownBlock) && !errors.Is(bad, ErrOffset) {
			t.Errorf("a bad request: %v", bad)
		}
	}
	var order []uint64
	sections := 0
	for done := false; !done; sections++ {
		var err error
		done, err = s.SaveIterate(l.w)
		check(err)
		check(l.w.Flush())
		n := 0
		p := bytes.Clone(l.buf.Bytes())
		l.buf.Reset()
		check(w.Walk(reader(p), func(rec *Record) error {
			if rec.Kind == KindPage {
				order = append(order, rec.Offset/PageSize)
				n++
			}
			return nil
		}))
		if n > walkBytes/PageSize+1 {
			t.Errorf("a section of %d pages keeps the next request waiting", n)
		}
		if s.Requested() {
			t.Error("what was asked for is left in front of the rest")
		}
		if sections == 2 {
			check(s.Request("ram", 300*PageSize, PageSize))
			if !s.Requested() {
				t.Error("nothing was asked for, it says")
			}
			order = order[:0:0]
		} else if sections == 3 && !slices.Equal(order, []uint64{300}) {
			t.Errorf("pages %d came with the one that was asked for", order)
		} else if sections == 0 && !slices.Equal(order, []uint64{500, 501}) {
			t.Errorf("first came %v", order)
		} else if sections == 1 && order[2] != 502 {
			t.Errorf("page %d came behind those that were asked for", order[2])
		}
	}
	if _, can := s.Pending(false); can != 0 {
		t.Errorf("%d bytes are left", can)
	}
	check(s.SaveCompletePostcopy(l.w))

	// On another connection all is sent that the other side does not have.
	have := NewBitmap(600)
	have.SetRange(0, 590)
	check(s.Resume("ram", have))
	if _, can := s.Pending(false); can != 10*PageSize {
		t.Errorf("%d bytes are to be sent again", can)
	}
	if err := s.SaveCompletePostcopy(l.w); err == nil {
		t.Error("the end was sent before the pages")
	}
	if err := s.Resume("ram", have[:1]); err == nil {
		t.Error("a bitmap that is too short was taken")
	}
	if err := s.Resume("rom", have); !errors.Is(err, ErrUnknownBlock) {
		t.Errorf("another block: %v", err)
	}
}

// Nobody confirms to a LazySaver what has arrived, so that its log is not kept on.
func TestALazySaverSwitchesItsLogOffWhateverIsAsked(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 4))
	s := NewLazySaver(g.blocks, g, SaverConfig{Resumable: true})
	if err := s.SaveSetup(qemufile.NewWriter(io.Discard)); err != nil || !g.on {
		t.Fatalf("%v, log on: %v", err, g.on)
	}
	if s.SaveCleanup(); g.on {
		t.Error("the log is on after SaveCleanup")
	}
}

// What was asked for on a connection that has broken is asked for anew on the next.
func TestALazySaverForgetsWhatAnotherConnectionAskedFor(t *testing.T) {
	g := newGuest(t, pages(t, "ram", 8))
	s := NewLazySaver(g.blocks, g, SaverConfig{})
	l := newLink(t)
	if err := s.SaveSetup(l.w); err != nil {
		t.Fatal(err)
	}
	if err := s.Request("ram", 0, PageSize); err != nil || !s.Requested() {
		t.Fatalf("requested: %v, %v", s.Requested(), err)
	}
	if err := s.Resume("ram", []uint64{1}); err != nil || s.Requested() {
		t.Errorf("after Resume something is asked for: %v, %v", s.Requested(), err)
	}
	if err := s.Request("ram", 0, PageSize); err != nil || !s.Requested() {
		t.Errorf("asked for again: %v, %v", s.Requested(), err)
	}
}
