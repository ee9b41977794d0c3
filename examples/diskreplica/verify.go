package main

import (
	"cmp"
	"context"
	"errors"

	"github.com/gocolo/lockstep/replication"
)

// errDiffer is the verdict of a verify that has found differences.
var errDiffer = errors.New("the copies differ (see above; repair makes the secondary's like the primary's)")

// verify compares both copies, and makes the secondary's like the primary's if
// repair says so.
func (p *primary) verify(ctx context.Context, repair bool) error {
	differ, err := p.compare(ctx, repair)
	p.verdict = err
	if differ && !repair {
		p.verdict = errors.Join(errDiffer, err)
	}
	var undecided *replication.UndecidedError
	if errors.As(err, &undecided) {
		return nil // was printed
	}
	return err
}

// compare does it, prints what it finds, and reports whether the copies differed.
func (p *primary) compare(ctx context.Context, repair bool) (differ bool, err error) {
	if !p.linked() {
		return false, errNoSecondary
	}
	sums, err := p.dial(ctx, "sums")
	if err != nil {
		return false, err
	}
	defer sums.Close()
	defer abortAfter(ctx, sums)()
	cfg := replication.VerifyConfig{Sums: sums}
	if repair {
		cfg.Repair = replication.RepairSecondary
	}
	different, err := p.disk.VerifyOnline(ctx, cfg)
	said := map[string]any{"different": p.ranges("different", different)}
	var undecided *replication.UndecidedError
	if errors.As(err, &undecided) {
		said["undecided"] = p.ranges("undecided", undecided.Chunks)
		p.printf("what is undecided was written by the guest each time that it was read: verify again when it writes less")
	}
	if err == nil || undecided != nil {
		p.object(map[string]any{"return": said})
	}
	return !different.Empty(), cmp.Or(ctx.Err(), p.lost(err, p.conn, sums))
}

// ranges prints the ranges of a bitmap for people, and returns them, as offset and length.
func (p *primary) ranges(what string, b *replication.Bitmap) [][2]int64 {
	all := [][2]int64{}
	for off, size := int64(0), p.disk.Size(); off < size; {
		b.Extents(off, size-off, func(n int64, flags uint32) bool {
			if flags&replication.BitmapDirty != 0 {
				p.printf("%s: %d bytes at %d", what, n, off)
				all = append(all, [2]int64{off, n})
			}
			off += n
			return true
		})
	}
	return all
}
