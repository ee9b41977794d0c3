package vmstate

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A queue's elements have something that a stream does not carry.
type queue struct {
	Tail, List, Tree []queued
	// begin is added to the first element before the parts have their turn, end after it.
	begin, end uint32
}

type queued struct {
	Base, Twice uint32
	Inner       []queued
}

func (e *queued) VMState(f *Fields) {
	f.Uint32("base", &e.Base)
	f.OnCommit(func() error { e.Twice = 2 * e.Base; return nil })
	QTailQ(f, "inner", "inner", 1, &e.Inner, 4, func(e *queued, f *Fields) {
		f.Uint32("base", &e.Base)
		f.OnCommit(func() error { e.Twice = 2 * e.Base; return nil })
	})
}

func (q *queue) VMState(f *Fields) {
	f.OnCommit(func() error { q.Tail[0].Base += q.begin; return nil })
	QTailQ(f, "tail", "queued", 1, &q.Tail, 4, (*queued).VMState)
	QList(f, "list", "queued", 1, &q.List, 4, (*queued).VMState)
	GTree(f, "tree", "queued", 1, &q.Tree, 4, (*queued).VMState)
	f.OnCommit(func() error { q.Tail[0].Base += q.end; return nil })
}

func TestWhatAPartOfAListDoesOnCommitIsDoneToTheElement(t *testing.T) {
	of := func(bases ...uint32) (l []queued) {
		for _, b := range bases {
			l = append(l, queued{Base: b})
		}
		return l
	}
	from := &queue{Tail: of(1, 2), List: of(3), Tree: of(4, 5)}
	from.List[0].Inner = of(6)
	e := Entry{Name: "queue", Version: 1, MinVersion: 1}
	state := saved(t, registry(t, e, from))
	to := &queue{begin: 10, end: 100}
	reg := registry(t, e, to)
	wantNil(t, "load", reg.LoadDevices(state, nil))
	wantNil(t, "commit", reg.Commit())
	for _, x := range []struct {
		name      string
		got, want []queued
	}{
		{"tail", to.Tail, []queued{{Base: 111, Twice: 22}, {Base: 2, Twice: 4}}},
		{"list", to.List, []queued{{Base: 3, Twice: 6, Inner: []queued{{Base: 6, Twice: 12}}}}},
		{"tree", to.Tree, []queued{{Base: 4, Twice: 8}, {Base: 5, Twice: 10}}},
	} {
		if d := cmp.Diff(x.want, x.got); d != "" {
			t.Errorf("%s: %s", x.name, d)
		}
	}
}
