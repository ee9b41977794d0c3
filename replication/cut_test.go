package replication

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/gocolo/lockstep/event"
)

// Whatever a guest's write or flush waits for, Cut lets it go, and what it wrote
// is remembered.
func TestCutLetsEveryWriterGo(t *testing.T) {
	for name, wait := range map[string]func(t *testing.T, p *Primary){
		"room in the window": func(*testing.T, *Primary) {},
		"a secondary to load what it was given": func(t *testing.T, p *Primary) {
			must(t, p.peerHold(7))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bus, broken := heard[event.DiskBroken]()
				p, local, _, r := newPrimaryWith(t, PrimaryConfig{InSync: true, Events: bus,
					Forward: ForwarderConfig{WindowRequests: 1, WindowBytes: BlockSize, HoldBytes: BlockSize}})
				r.setHang(true)
				wait(t, p)
				var wg sync.WaitGroup
				for i := range int64(6) {
					wg.Go(func() { write(t, p, 0x22, i*ChunkSize, BlockSize) })
				}
				wg.Go(func() { must(t, p.Sync()) })
				synctest.Wait()
				p.Cut()
				p.Cut()
				wg.Wait()
				write(t, p, 0x22, 6*ChunkSize, BlockSize) // and does not wait
				if err := p.Err(); !errors.Is(err, ErrCut) || !errors.Is(err, ErrBroken) {
					t.Errorf("error %v", err)
				}
				wantErr(t, "mark", p.Mark(context.Background(), 8), ErrCut)
				must(t, p.Stop(context.Background(), true))
				for i := range int64(7) {
					want(t, "the local disk", local, 0x22, i*ChunkSize, BlockSize)
					if !p.peer.dirty.Any(i*ChunkSize, 1) {
						t.Errorf("nobody knows that the secondary lacks write %d", i)
					}
				}
				if len(*broken) != 0 {
					t.Errorf("heard %+v of what the host has asked for", *broken)
				}
			})
		})
	}
}

// peerHold begins what Mark begins, without waiting for the secondary.
func (p *Primary) peerHold(epoch uint64) error { return p.link.Load().beginHold(epoch) }
