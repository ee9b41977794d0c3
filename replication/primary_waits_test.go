package replication

import (
	"context"
	"io"
	"sync"
	"testing"
	"testing/synctest"
)

// hesitant is a Remote, with sums, that waits in one of its methods until it is told to go on.
type hesitant struct {
	*fakeRemote
	in string // the method
	on chan struct{}
}

func (r *hesitant) wait(in string) {
	if r.in == in {
		<-r.on
	}
}

func (r *hesitant) Identity() (Identity, error) {
	r.wait("Identity")
	return r.fakeRemote.Identity()
}

func (r *hesitant) Adopt(of Identity) error {
	r.wait("Adopt")
	return r.fakeRemote.Adopt(of)
}

func (r *hesitant) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	r.wait("Extents")
	yield(n, 0)
	return nil
}

func (r *hesitant) Close() error {
	r.wait("Close")
	return r.fakeRemote.Close()
}

func (r *hesitant) ReadAt(p []byte, off int64) (int, error) {
	r.wait("ReadAt")
	return NewSums(r.disk).ReadAt(p, off)
}

var _ io.ReaderAt = (*hesitant)(nil)

// knowing is a disk that knows which of its chunks are zero, as holes.
type knowing struct{ growingFake }

func (d knowing) Extents(off, n int64, yield func(n int64, flags uint32) bool) error {
	for end := off + n; off < end; {
		c := min(end, off-off%ChunkSize+ChunkSize) - off
		p := make([]byte, c)
		if _, err := d.ReadAt(p, off); err != nil {
			return err
		}
		var flags uint32
		if isZero(p) {
			flags = hole
		}
		if !yield(c, flags) {
			return nil
		}
		off += c
	}
	return nil
}

// A host that does not answer may do so for half a minute. If anything here waited with it, this
// test would not end.
func TestTheGuestGoesOnWhileTheOtherSideIsWaitedFor(t *testing.T) {
	ctx := context.Background()
	for name, tc := range map[string]struct {
		in string
		do func(p *Primary, r *hesitant) error
	}{
		"for its identity": {"Identity", func(p *Primary, r *hesitant) error { return p.Attach(r) }},
		"to adopt one":     {"Adopt", func(p *Primary, r *hesitant) error { return p.Attach(r) }},
		"to take leave in Attach": {"Close", func(p *Primary, r *hesitant) error {
			must(t, p.Attach(r))
			return p.Attach(newFakeRemote(r.disk, 1))
		}},
		"to take leave in Detach": {"Close", func(p *Primary, r *hesitant) error {
			must(t, p.Attach(r))
			return p.Detach()
		}},
		"to take leave in Stop": {"Close", func(p *Primary, r *hesitant) error {
			must(t, p.Attach(r))
			must(t, p.Synchronise(ctx, SyncConfig{}))
			must(t, p.Start(ctx))
			return p.Stop(ctx, false)
		}},
		"to take leave in Grow": {"Close", func(p *Primary, r *hesitant) error {
			must(t, p.Attach(r))
			must(t, p.Synchronise(ctx, SyncConfig{}))
			far := r.disk.(*fakeDisk)
			far.data = append(far.data, make([]byte, BlockSize)...)
			return p.Grow(ctx, far.Size(), newFakeRemote(far, 1))
		}},
		"for its holes": {"Extents", func(p *Primary, r *hesitant) error {
			must(t, p.Attach(r))
			must(t, p.Unsynchronise(wholeOf(p)))
			return p.Synchronise(ctx, SyncConfig{})
		}},
		"for its sums": {"ReadAt", func(p *Primary, r *hesitant) error {
			must(t, p.Attach(r))
			must(t, p.Unsynchronise(wholeOf(p)))
			return p.Synchronise(ctx, SyncConfig{Sums: r})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				local, far := newFake(2*testSize, 0), newFake(2*testSize, 0)
				p, err := NewPrimary(knowing{growingFake{local}}, PrimaryConfig{InSync: true})
				must(t, err)
				must(t, p.Attach(newFakeRemote(far, 1)))
				must(t, p.Start(ctx))
				must(t, p.Stop(ctx, false)) // the next write of the guest has something to record
				r := &hesitant{newFakeRemote(far, 1), tc.in, make(chan struct{})}
				var done sync.WaitGroup
				ended := false
				done.Go(func() {
					err := tc.do(p, r)
					ended = true
					if err != nil {
						t.Error(err)
					}
				})
				synctest.Wait()
				if ended {
					t.Fatal("nothing was waited for")
				}
				write(t, p, 0x22, 0, 4096)
				write(t, p, 0x33, testSize+4096, 4096) // it was a hole
				must(t, p.Sync())
				p.Info()
				p.DiskInfo()
				p.Err()
				p.Checkpoint(ctx, 0)
				if p.State() != Running {
					p.Stop(ctx, false)
				}
				close(r.on)
				done.Wait()

				if p.link.Load() == nil || p.link.Load().Err() != nil {
					must(t, p.Attach(newFakeRemote(far, 1)))
				}
				must(t, p.Synchronise(ctx, SyncConfig{}))
				must(t, p.Mark(ctx, 1))
				wantBytes(t, "both disks are the same", far.data, local.data, 0)
			})
		})
	}
}

// wholeOf returns a Bitmap of which all is set.
func wholeOf(p *Primary) *Bitmap {
	b := NewBitmap(p.Size())
	b.Set(0, p.Size())
	return b
}
