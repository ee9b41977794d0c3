package replication

import (
	"fmt"
	"slices"
	"testing"
)

// superblocks returns what stable storage can say of one disk of a guest, in small numbers.
func superblocks() (all []superblock) {
	starts := []ID{{1}, {2}}
	for epoch := range uint64(3) {
		for _, writes := range []bool{false, true} {
			id := Identity{Epoch: epoch, Writes: writes}
			for _, b := range []superblock{
				{state: None, id: id},
				{state: Done, epoch: epoch, id: id},
				{state: Done, epoch: epoch, id: id, alone: true},
				{state: Running, epoch: epoch, id: id},
				{state: Running, epoch: epoch, id: id, prepared: epoch + 1},
				{state: Failover, epoch: epoch, id: id},
				{state: Failover, epoch: epoch, id: id, alone: true},
			} {
				for _, run := range []ID{{}, starts[0], starts[1]} {
					b.run = run
					b.start, b.pending = ID{}, false
					all = append(all, b)
					for _, start := range starts {
						if b.state != Failover && start != run {
							b.start, b.pending = start, true
							all = append(all, b)
						}
					}
				}
			}
		}
	}
	return all
}

// said returns a superblock in words, for messages.
func said(b superblock) string {
	return fmt.Sprintf("%v, epoch %d, prepared %d, of start %x, start %x, pending %t, alone %t, writes %t", b.state, b.epoch, b.prepared, b.run[0], b.start[0], b.pending, b.alone, b.id.Writes)
}

// recovered returns the superblock that Journal.recover leaves.
func recovered(b superblock, how int) superblock {
	switch how {
	case rollForward:
		b.epoch = b.prepared
	case rollToStart:
		b.epoch, b.run = 0, b.start
	}
	if b.id.Epoch = b.epoch; how == finishFailover {
		b.id.begin()
		b.id.Writes = true
	}
	b.state, b.prepared, b.start, b.pending = Done, 0, ID{}, false
	return b
}

// Whatever the journals of two disks say: they are refused, or end at one epoch, both with
// what the guest wrote after a failover or both without; and a recovery that is interrupted
// between the two goes on to the same end.
func TestARecoveryThatIsInterruptedGoesOnToTheSameEnd(t *testing.T) {
	all := superblocks()
	planned, refused := 0, 0
	for _, a := range all {
		for _, b := range all {
			disks := []superblock{a, b}
			epoch, how, err := planRecovery(disks)
			if err != nil {
				refused++
				continue
			}
			planned++
			order := recoveryOrder(disks, how)
			for done := range order {
				after := slices.Clone(disks)
				for _, i := range order[:done+1] {
					after[i] = recovered(after[i], how[i])
					if after[i].epoch != epoch {
						t.Fatalf("%s\n%s:\ndisk %d ends at epoch %d, not at %d", said(a), said(b), i, after[i].epoch, epoch)
					}
				}
				epochThen, howThen, err := planRecovery(after)
				if err != nil {
					t.Fatalf("%s\n%s:\nafter %d disks the recovery, which was possible, is refused: %v", said(a), said(b), done+1, err)
				}
				for _, i := range order[done+1:] {
					if epochThen != epoch || howThen[i] != how[i] {
						t.Fatalf("%s\n%s:\nafter %d disks the plan for disk %d is %d to epoch %d, it was %d to %d", said(a), said(b), done+1, i, howThen[i], epochThen, how[i], epoch)
					}
				}
			}
			finished := func(i int) bool { return disks[i].state == Failover && how[i] == finishFailover }
			back := func(i int) bool {
				return disks[i].state == Running || disks[i].state == Failover && how[i] != finishFailover
			}
			if finished(0) && back(1) || finished(1) && back(0) {
				t.Fatalf("%s\n%s:\none has what the guest wrote after the failover, the other has not", said(a), said(b))
			}
		}
	}
	if planned == 0 || refused == 0 {
		t.Errorf("%d planned, %d refused", planned, refused)
	}
}
