package replication

import (
	"context"
	"errors"
	"testing"
)

// A lateRemote keeps the requests of writes to itself from some moment on, and answers them when
// it is told to: its connection may be over, and another in use, by then.
type lateRemote struct {
	*fakeRemote
	keeps bool
	kept  []func(error)
}

func (r *lateRemote) StartWrite(p []byte, off int64, fua bool, done func(error)) {
	if r.keeps {
		r.kept = append(r.kept, done)
		return
	}
	r.fakeRemote.StartWrite(p, off, fua, done)
}

func (r *lateRemote) Abort() {}

func (r *lateRemote) answer(err error) {
	for _, done := range r.kept {
		done(err)
	}
	r.kept = nil
}

// A connection that is over may say only later that a write was lost with it. What another
// connection has copied since is there all the same: a chunk that counted as missing again would
// keep the disk from being protected, and what the guest writes to it on the other side.
func TestAnAnswerFromALinkThatIsOverChangesNothing(t *testing.T) {
	ctx := context.Background()
	for name, over := range map[string]func(p *Primary){
		"after a stop": func(p *Primary) { must(t, p.Stop(ctx, false)) },
		"after a cut":  func(p *Primary) { p.Cut(); must(t, p.Stop(ctx, false)) },
		"not started":  nil,
	} {
		for _, err := range []error{errors.New("the connection is closed"), nil} {
			t.Run(name, func(t *testing.T) {
				p, local, remote, _ := newPrimary(t, ForwarderConfig{})
				must(t, p.Stop(ctx, false))
				late := &lateRemote{fakeRemote: newFakeRemote(remote, 2)}
				attach := func(r Remote) {
					t.Helper()
					must(t, p.Attach(r))
					must(t, p.Synchronise(ctx, SyncConfig{}))
					must(t, p.Mark(ctx, 0))
					must(t, p.Loaded(ctx, 0))
				}
				attach(late)
				if over != nil {
					must(t, p.Start(ctx))
				}
				late.keeps = true
				write(t, p, 0x22, 0, 512)
				if over != nil {
					over(p)
				}
				attach(newFakeRemote(remote, 3))
				if len(late.kept) == 0 {
					t.Fatal("the write was not sent")
				}
				late.answer(err)
				must(t, p.Start(ctx))
				if n := p.Dirty(); n > 0 {
					t.Errorf("%d bytes count as missing", n)
				}
				write(t, p, 0x33, 0, 512)
				must(t, p.Mark(ctx, 1))
				wantBytes(t, "both disks are the same", remote.data, local.data, 0)
			})
		}
	}
}
