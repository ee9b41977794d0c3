package replication_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gocolo/lockstep/replication"
)

// memory is a disk in memory.
type memory []byte

func (m memory) Size() int64                              { return int64(len(m)) }
func (m memory) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m memory) Sync() error                              { return nil }

// A disk in two copies, through a checkpoint and a failover. On two hosts,
// the primary would attach an nbd.Client, and the secondary serve its Export
// with an nbd.Server.
func Example() {
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			log.Fatal(err)
		}
	}
	s, err := replication.NewSecondary(make(memory, 1<<20), replication.SecondaryConfig{})
	must(err)
	p, err := replication.NewPrimary(make(memory, 1<<20), replication.PrimaryConfig{})
	must(err)
	must(p.Attach(replication.DiskRemote(s.Export())))
	must(p.Synchronise(ctx, replication.SyncConfig{}))
	must(s.Start(ctx))
	must(p.Start(ctx))

	say := func() {
		b := make([]byte, 5)
		s.ReadAt(b, 0)
		fmt.Printf("the secondary's guest reads %q\n", b)
	}
	p.WriteAt([]byte("first"), 0)
	must(p.Mark(ctx, 1)) // the primary's guest is paused, and goes on after this
	p.WriteAt([]byte("later"), 0)
	must(s.Checkpoint(ctx, 1))
	must(p.Loaded(ctx, 1))
	say()

	must(p.Sync()) // "later" is on the secondary's disk, but in no checkpoint
	say()
	must(s.Stop(ctx, true))
	say()
	// Output:
	// the secondary's guest reads "first"
	// the secondary's guest reads "first"
	// the secondary's guest reads "first"
}
