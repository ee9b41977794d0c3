package replication_test

import (
	"context"
	"errors"
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

// request is an element of the queue of a virtio-blk device.
type request struct {
	kind   int // VIRTIO_BLK_T_*, virtio 1.2, section 5.2.6
	sector int64
	data   []byte // for all but a flush, discard and write-zeroes
	bytes  int64  // for discard and write-zeroes
}

// do serves a request with a replication.Disk: a File, and in its place, once
// the guest is to be protected, a Primary or a Secondary over it.
func do(d replication.Disk, r request) (status byte) {
	const okay, ioErr, unsupported = 0, 1, 2
	off := r.sector * 512
	var err error
	switch r.kind {
	case 0: // IN
		_, err = d.ReadAt(r.data, off)
	case 1: // OUT
		_, err = d.WriteAt(r.data, off)
	case 4: // FLUSH
		err = d.Sync()
	case 11: // DISCARD
		if t, ok := d.(replication.Trimmer); ok {
			err = t.Trim(off, r.bytes)
		}
	case 13: // WRITE_ZEROES
		err = replication.WriteZeroes(d, off, r.bytes)
	default:
		return unsupported
	}
	if err != nil {
		return ioErr
	}
	return okay
}

// The backend of a virtio-blk device needs no change for a guest that is
// protected: both halves of a replicated disk are disks.
func ExampleDisk() {
	ctx := context.Background()
	p, err := replication.NewPrimary(make(memory, 1<<20), replication.PrimaryConfig{Overwrite: true})
	if err != nil {
		log.Fatal(err)
	}
	s, err := replication.NewSecondary(make(memory, 1<<20), replication.SecondaryConfig{})
	if err != nil {
		log.Fatal(err)
	}
	block := make([]byte, 4096)
	copy(block, "from the guest")
	fmt.Println("unprotected:", do(p, request{kind: 1, sector: 8, data: block}))

	err = errors.Join(p.Attach(replication.DiskRemote(s.Export())), p.Synchronise(ctx, replication.SyncConfig{}), s.Start(ctx), p.Start(ctx))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("protected:", do(p, request{kind: 4}))
	there := make([]byte, 4096)
	fmt.Println("the twin reads:", do(s, request{kind: 0, sector: 8, data: there}), string(there[:14]))
	// Output:
	// unprotected: 0
	// protected: 0
	// the twin reads: 0 from the guest
}

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
	p, err := replication.NewPrimary(make(memory, 1<<20), replication.PrimaryConfig{Overwrite: true})
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
