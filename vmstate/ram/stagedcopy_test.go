package ram

import (
	"errors"
	"math/rand/v2"
	"testing"
)

func TestWithAPeerThatSendsNothingAgainACopyIsKept(t *testing.T) {
	prim := newGuest(t, pages(t, "a", 50), pages(t, "b", 3))
	r := rand.New(rand.NewPCG(4, 4))
	prim.scribble(r, 60)
	sec := prim.twin(t)
	sec.scribble(r, 60)
	s, c, l := NewSaver(prim.blocks, prim, SaverConfig{XBZRLE: 1 << 20}), kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, sec, CacheConfig{}), newLink(t)
	for range 2 { // two sessions
		l.setup(s)
		for !l.iterate(s) {
		}
		l.complete(s)
		l.load(c)
		if c.KeepsCopy() {
			t.Fatal("a session begins with a copy")
		}
		if err := c.KeepCopy(); err != nil || !c.KeepsCopy() {
			t.Fatal(err)
		}
		flush(t, c)
		wantSame(t, "after the initial synchronisation", sec, prim)
		if c.Memory() == 0 {
			t.Error("the copy takes no memory")
		}
		for range 10 {
			prim.scribble(r, 20)
			sec.scribble(r, 20)
			if list := dirtyList(t, c); len(list) != 1 {
				t.Errorf("a list of %d bytes of a cache that keeps a copy", len(list))
			}
			capture(t, s)
			want := prim.snapshot()
			l.complete(s)
			l.load(c)
			flush(t, c)
			wantMemory(t, "after a checkpoint", sec, want)
		}
		if err := c.KeepCopy(); err != nil {
			t.Errorf("a second call: %v", err)
		}
		c.NewSession()
		if c.Memory() != 0 {
			t.Error("a new session keeps the copy's memory")
		}
	}
}

func TestACopyIsNotKeptWhereItHasNoRoom(t *testing.T) {
	_, c := kind{cfg: CacheConfig{StagedOnly: true}}.one(t, 4, CacheConfig{MaxStaged: 4*PageSize - 1})
	if err := c.KeepCopy(); !errors.Is(err, ErrStagedFull) {
		t.Errorf("KeepCopy = %v", err)
	}
	flush(t, c)
	if err := c.KeepCopy(); !errors.Is(err, ErrDiscarded) {
		t.Errorf("KeepCopy after the first Flush = %v", err)
	}
}

func TestACopyIsKeptWhereNobodySaysThatThePrimarySendsAgain(t *testing.T) {
	prim := newGuest(t, pages(t, "ram", 8))
	prim.write(0, PageSize, page(3)...)
	sec := prim.twin(t)
	c, err := NewCache(sec.blocks, sec, CacheConfig{StagedOnly: true})
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, l := NewSaver(prim.blocks, prim, SaverConfig{}), newLink(t)
	for session := range 2 {
		l.sync(s, c)
		sec.write(0, PageSize, page(9)...) // only here
		capture(t, s)
		l.complete(s)
		l.load(c)
		if err := c.Flush(); err != nil {
			t.Fatalf("session %d: %v", session, err)
		}
		wantSame(t, "after a checkpoint", sec, prim)
		c.NewSession() // forgets what was said
		if session == 0 {
			c.Resent()
			c.NewSession()
		}
	}
	small := kind{cfg: CacheConfig{StagedOnly: true}}.cache(t, sec.twin(t), CacheConfig{MaxStaged: PageSize})
	small.NewSession()
	if err := small.Flush(); !errors.Is(err, ErrStagedFull) {
		t.Errorf("Flush without room for a copy = %v", err)
	}
}
