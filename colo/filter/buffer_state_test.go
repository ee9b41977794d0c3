package filter_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/google/go-cmp/cmp"
)

// A device is a filter that keeps state which the side that goes on needs.
type device interface {
	vmstate.Device
	Entry(instance uint32) vmstate.Entry
}

func registry(t testing.TB, d device) *vmstate.Registry {
	t.Helper()
	var reg vmstate.Registry
	if err := reg.Register(d.Entry(0), d); err != nil {
		t.Fatal(err)
	}
	return &reg
}

// save returns the device state of a guest whose only device is d.
func save(t testing.TB, d device) []byte {
	t.Helper()
	var state bytes.Buffer
	w := qemufile.NewWriter(&state)
	if err := registry(t, d).SaveDevices(w); err != nil {
		t.Fatal(err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return state.Bytes()
}

// load stages and commits such a state.
func load(t testing.TB, b *filter.Buffer, state []byte) {
	t.Helper()
	reg := registry(t, b)
	if err := reg.Load(qemufile.NewReader(bytes.NewReader(state)), nil); err != nil {
		t.Fatal(err)
	}
	if err := reg.Commit(); err != nil {
		t.Fatal(err)
	}
}

// released runs b until it has nothing more to write.
func released(t *testing.T, b *filter.Buffer) string {
	var got []string
	synctest.Test(t, func(t *testing.T) {
		// A Buffer that was made outside of the bubble may be used in it as
		// long as nobody waits: Run finds everything there.
		ctx, cancel := context.WithCancel(t.Context())
		var out network
		left := int(b.Stats().Queued + b.Stats().Inherited)
		if left == 0 {
			cancel()
			return
		}
		out.delay = func() {
			if left--; left == 0 {
				cancel()
			}
		}
		b.Run(ctx, &out)
		got = out.taken()
	})
	return strings.Join(got, " ")
}

func TestSurvivorSendsWhatWasReleasedAndHadNotLeft(t *testing.T) {
	p, s := filter.NewBuffer(filter.BufferConfig{}), filter.NewBuffer(filter.BufferConfig{})
	p.WritePacket([]byte("old"))
	p.Mark(0)
	load(t, s, save(t, p))
	s.Commit(0)
	p.Received(0)
	p.WritePacket([]byte("a"))
	p.WritePacket([]byte("b"))
	p.Mark(1)
	p.WritePacket([]byte("of the next epoch"))
	state := save(t, p)
	s.WritePacket([]byte("rolled back"))
	load(t, s, state)
	s.Commit(1)
	s.WritePacket([]byte("c"))
	if st := s.Stats(); st.Inherited != 3 || st.InheritedBytes != 5 || st.Held != 1 || st.Dropped != 1 {
		t.Errorf("%+v", st)
	}
	s.Failover()
	if got := released(t, s); got != "old a b c" {
		t.Errorf("%q left", got)
	}
	if st := s.Stats(); st.Inherited != 0 || st.InheritedBytes != 0 || st.Written != 4 {
		t.Errorf("%+v", st)
	}
}

func TestInheritedPacketsWaitForTheFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := filter.NewBuffer(filter.BufferConfig{}), filter.NewBuffer(filter.BufferConfig{})
		p.WritePacket([]byte("a"))
		p.Mark(0)
		load(t, s, save(t, p))
		s.Commit(0)
		x := start(t, s)
		x.wantOut("the primary is there and says it itself", "")
		x.Failover()
		x.wantOut("the primary is not there any more", "a")
		x.end()
	})
}

func TestInheritedPacketsAreHandedOnIfTheyHaveNotLeft(t *testing.T) {
	a, b, c := filter.NewBuffer(filter.BufferConfig{}), filter.NewBuffer(filter.BufferConfig{}), filter.NewBuffer(filter.BufferConfig{})
	a.Mark(0)
	load(t, b, save(t, a))
	b.Commit(0)
	a.WritePacket([]byte("1"))
	a.Mark(1)
	load(t, b, save(t, a))
	b.Commit(1)
	b.WritePacket([]byte("2"))
	b.Failover()
	b.WritePacket([]byte("3"))
	b.Mark(0) // with c
	b.WritePacket([]byte("4"))
	load(t, c, save(t, b))
	c.Commit(0)
	c.Failover()
	if got := released(t, c); got != "1 2 3" {
		t.Errorf("%q left", got)
	}
}

// A survivor had sent one of two packets that it inherited when it became the secondary of
// another primary, which has two of the same lengths for it.
func TestAHostThatFollowsAgainInheritsFromTheFirstPacketOn(t *testing.T) {
	inherits := func(s *filter.Buffer, packets ...string) {
		p := filter.NewBuffer(filter.BufferConfig{})
		for _, x := range packets {
			p.WritePacket([]byte(x))
		}
		p.Mark(0)
		load(t, s, save(t, p))
		if err := s.Commit(0); err != nil {
			t.Fatal(err)
		}
	}
	s := filter.NewBuffer(filter.BufferConfig{})
	inherits(s, "a1", "a2")
	s.Failover()
	ctx, stop := context.WithCancel(t.Context())
	out := network{delay: stop}
	if err := s.Run(ctx, &out); err != context.Canceled || len(out.got) != 1 {
		t.Fatalf("%v, and %q left", err, out.got)
	}
	inherits(s, "b1", "b2")
	if st := s.Stats(); st.Inherited != 2 || st.InheritedBytes != 4 {
		t.Fatalf("%+v", st)
	}
	s.Failover()
	if got := released(t, s); got != "b1 b2" {
		t.Errorf("%q left", got)
	}
}

func TestASecondarysOutputCountsFromEachCommitAnew(t *testing.T) {
	asked := 0
	s := filter.NewBuffer(filter.BufferConfig{Soft: 1000, Full: func() { asked++ }})
	for epoch, c := range []struct{ packets, want int }{{1, 0}, {1, 0}, {3, 1}, {1, 1}, {3, 2}} {
		if err := s.Commit(uint64(epoch)); err != nil {
			t.Fatal(err)
		}
		for range c.packets {
			s.WritePacket(make([]byte, 600))
		}
		if asked != c.want {
			t.Errorf("epoch %d: a checkpoint was asked for %d times in all, want %d", epoch, asked, c.want)
		}
	}
}

func TestLoadThatIsRolledBackChangesNothing(t *testing.T) {
	p, s := filter.NewBuffer(filter.BufferConfig{}), filter.NewBuffer(filter.BufferConfig{})
	p.WritePacket([]byte("first"))
	p.Mark(0)
	load(t, s, save(t, p))
	s.Commit(0)
	s.WritePacket([]byte("own"))
	before := s.Stats()

	p.WritePacket([]byte("second"))
	p.Mark(1)
	state := save(t, p)
	reg := registry(t, s)
	if err := reg.Load(qemufile.NewReader(bytes.NewReader(state)), nil); err != nil {
		t.Fatal(err)
	}
	reg.Rollback()
	for n := range len(state) - 1 { // the last byte is the end of the stream
		if err := reg.Load(qemufile.NewReader(bytes.NewReader(state[:n])), nil); err == nil {
			t.Fatalf("cut at %d: no error", n)
		}
	}
	if d := cmp.Diff(before, s.Stats()); d != "" {
		t.Error(d)
	}
	s.Failover()
	if got := released(t, s); got != "first own" {
		t.Errorf("%q left", got)
	}
}

func TestHostileStateIsRefused(t *testing.T) {
	p := filter.NewBuffer(filter.BufferConfig{})
	p.WritePacket([]byte("abcd"))
	p.WritePacket([]byte("ef"))
	good := save(t, p)
	data := bytes.Index(good, []byte("\x00\x00\x00\x04abcd"))
	if data < 0 {
		t.Fatalf("%x", good)
	}
	for _, c := range []struct {
		why  string
		at   int
		v    uint32
		want error
	}{
		{"more packets than there are", -8, 3, filter.ErrFrame},
		{"fewer", -8, 1, filter.ErrFrame},
		{"more bytes than memory", -4, 1 << 31, vmstate.ErrBounds},
		{"an empty packet", 0, 0, filter.ErrFrame},
		{"a packet beyond the end", 8, 3, filter.ErrFrame},
		{"a packet longer than any", 0, filter.MaxFrame + 1, filter.ErrFrameTooBig},
		{"a length that is cut", 0, 7, filter.ErrFrame},
	} {
		state := bytes.Clone(good)
		binary.BigEndian.PutUint32(state[data+c.at:], c.v)
		s := filter.NewBuffer(filter.BufferConfig{})
		err := registry(t, s).Load(qemufile.NewReader(bytes.NewReader(state)), nil)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.why, err, c.want)
		}
		if d := cmp.Diff(filter.BufferStats{}, s.Stats()); d != "" {
			t.Errorf("%s: %s", c.why, d)
		}
	}
}

func FuzzBufferState(f *testing.F) {
	p := filter.NewBuffer(filter.BufferConfig{})
	p.WritePacket([]byte("abcd"))
	f.Add(save(f, p))
	f.Fuzz(func(t *testing.T, state []byte) {
		s := filter.NewBuffer(filter.BufferConfig{Limit: 1})
		reg := registry(t, s)
		if reg.Load(qemufile.NewReader(bytes.NewReader(state)), nil) != nil {
			return
		}
		if err := reg.Commit(); err != nil {
			t.Fatal(err)
		}
		s.Failover()
		save(t, s)
		released(t, s)
		if st := s.Stats(); st.Inherited != 0 {
			t.Fatalf("%+v", st)
		}
	})
}
