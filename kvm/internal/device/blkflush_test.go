package device

import (
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"testing"
)

// slow is a store whose flushes wait to be let go, each with its answer.
type slow struct {
	*store
	begun chan struct{} // sent to by each flush
	end   chan error
}

func (s *slow) Sync() error {
	s.store.syncs.Add(1)
	s.begun <- struct{}{}
	return <-s.end
}

func newSlowRig(t *testing.T) (*blkRig, *slow) {
	r := newBlkRig(t, 64<<10)
	disk := &slow{r.disk, make(chan struct{}), make(chan error)}
	r.blk.backend = disk
	return r, disk
}

// settled waits until a server of a running disk has nothing to do, and pauses it.
func (r *blkRig) settled(is func() bool) {
	r.t.Helper()
	for {
		must(r.t, r.gate.Close(r.t.Context()))
		if is() {
			return
		}
		r.gate.Open()
		runtime.Gosched()
	}
}

// flushes are the requests of a driver for which the backend is flushed.
var flushes = map[string]func(*blkRig){
	"flush": func(r *blkRig) { r.request(blkSync, 0) },
	"write of a driver that does not flush": func(r *blkRig) {
		r.out(regFeatures, 4, 0)
		r.request(blkOut, 0, part{testData, SectorSize, false})
	},
}

// A flush takes as long as the host's disk does. The guest is paused and goes on meanwhile, and is told once, when
// the disk has answered.
func TestAPauseDoesNotWaitForAFlush(t *testing.T) {
	for name, ask := range flushes {
		for _, answer := range []error{nil, errors.New("no")} {
			r, disk := newSlowRig(t)
			ask(r)
			run(r.blk.Work, r.gate, func() {
				r.kick()
				<-disk.begun
				for range 3 {
					must(t, r.gate.Close(t.Context()))
					r.want("an answer before the disk's", []usedEntry{}...)
					r.gate.Open()
					r.blk.Kick()
				}
				must(t, r.gate.Close(t.Context()))
				disk.end <- answer
				r.untouched("a disk that answers in a pause", func() { r.blk.Save() })
				r.gate.Open()
				var got []usedEntry
				r.settled(func() bool { got = append(got, r.used()...); return len(got) > 0 })
				status := uint8(blkOK)
				if answer != nil {
					status = blkIOErr
				}
				if len(got) != 1 || got[0] != (usedEntry{0, 1}) || r.mem[testStatus] != status {
					t.Errorf("%s: answered %v, status %d, want one with %d", name, got, r.mem[testStatus], status)
				}
				if level, _ := r.raised(); !level {
					t.Errorf("%s: the guest is not told", name)
				}
			})
			if n := disk.syncs.Load(); n != 1 || len(r.blk.queues[0].begun) != 0 {
				t.Errorf("%s: %d flushes, and %d requests are left", name, n, len(r.blk.queues[0].begun))
			}
		}
	}
}

// A flush that was asked for and not answered is made on the disk of whoever has the guest then: the other host, or
// the same after a roll-back. The guest is told once by each, and not by the flush of a time that is no more.
func TestAFlushIsMadeAnewWhereTheGuestIsRestored(t *testing.T) {
	for name, ask := range flushes {
		from, disk := newSlowRig(t)
		to := newBlkRig(t, 64<<10)
		ask(from)
		run(from.blk.Work, from.gate, func() {
			from.kick()
			<-disk.begun
			must(t, from.gate.Close(t.Context()))
			state := stream(t, from.blk)
			copy(to.mem, from.mem)
			must(t, load(to.blk, state))
			to.watch(func() { drain(to.blk.step) })
			to.want(name+", on the other host", usedEntry{0, 1})
			if n := to.disk.syncs.Load(); n != 1 || to.mem[testStatus] != blkOK {
				t.Errorf("%s: the other host has flushed its disk %d times, status %d", name, n, to.mem[testStatus])
			}

			must(t, load(from.blk, state))
			from.gate.Open()
			from.blk.Kick()
			disk.end <- nil // of a time that is no more
			<-disk.begun    // it is made anew, and the old answer is nobody's
			must(t, from.gate.Close(t.Context()))
			from.want(name+", after a roll-back", []usedEntry{}...)
			from.gate.Open()
			disk.end <- nil
			var got []usedEntry
			from.settled(func() bool { got = append(got, from.used()...); return len(got) > 0 })
			if len(got) != 1 || from.mem[testStatus] != blkOK {
				t.Errorf("%s, after a roll-back: %v, status %d", name, got, from.mem[testStatus])
			}
		})
	}
}

// Nobody waits for a flush whose request is gone, and its answer goes nowhere.
func TestTheAnswerToAFlushThatIsGoneIsDropped(t *testing.T) {
	for name, away := range map[string]func(r *blkRig, before []byte){
		"reset":        func(r *blkRig, _ []byte) { r.out(regStatus, 1, 0) },
		"elsewhere":    func(r *blkRig, _ []byte) { r.out(regPFN, 4, 0x40000/queueAlign) },
		"state before": func(r *blkRig, before []byte) { must(t, load(r.blk, before)) },
		"broken ring": func(r *blkRig, _ []byte) {
			r.blk.mu.Lock()
			defer r.blk.mu.Unlock()
			r.blk.queues[0].broken = true
		},
		"chain that breaks the rules": func(r *blkRig, _ []byte) { r.desc(0, part{testHeader, blkHeader, false}, descIndirect, 1) },
	} {
		r, disk := newSlowRig(t)
		before := stream(t, r.blk)
		r.request(blkSync, 0)
		r.out(regNotify, 2, 0)
		run(r.blk.Work, r.gate, func() {
			<-disk.begun
			must(t, r.gate.Close(t.Context()))
			clear(r.mem[r.base+availAt:][:queueAlign]) // or the request would be taken again
			away(r, before)
			r.gate.Open()
			disk.end <- nil
		})
		r.want(name, []usedEntry{}...)
		if r.mem[testStatus] != 0xee {
			t.Errorf("%s: the request is answered", name)
		}
		if n := len(r.blk.queues[0].begun); n != 0 {
			t.Errorf("%s: %d requests are left", name, n)
		}
	}
}

// A disk may tell once that it has lost what was written. If the driver that asked does not hear of it, because it was
// reset or the guest was put back, the next flush fails.
func TestAFlushThatHasFailedUnheardFailsTheNext(t *testing.T) {
	for name, away := range map[string]func(*blkRig){
		"reset": func(r *blkRig) {
			r.out(regStatus, 1, 0)
			r.ring = newRing(r.board, r.blk, 0, 0x20000)
			r.out(regFeatures, 4, blkFlush)
			r.request(blkSync, 0)
		},
		"roll-back": func(r *blkRig) { must(t, load(r.blk, stream(t, r.blk))) },
	} {
		r, disk := newSlowRig(t)
		r.request(blkSync, 0)
		run(r.blk.Work, r.gate, func() {
			r.kick()
			<-disk.begun
			must(t, r.gate.Close(t.Context()))
			away(r)
			r.gate.Open()
			r.blk.Kick()
			disk.end <- errors.New("once")
			for n, status := range []uint8{blkIOErr, blkOK} {
				<-disk.begun
				disk.end <- nil
				var got []usedEntry
				r.settled(func() bool { got = append(got, r.used()...); return len(got) > 0 })
				if len(got) != 1 || r.mem[testStatus] != status {
					t.Errorf("%s: flush %d after it: answered %v, status %d, want %d", name, n+1, got, r.mem[testStatus], status)
				}
				r.request(blkSync, 0)
				r.gate.Open()
				r.kick()
			}
			<-disk.begun // the last request, for nobody
			disk.end <- nil
		})
	}
}

// A flush that is answered when Run has ended and the guest is paused is made again by the next Run.
func TestAFlushThatEndsAfterTheRunIsMadeByTheNext(t *testing.T) {
	r, disk := newSlowRig(t)
	r.request(blkSync, 0)
	ctx, stop := context.WithCancel(t.Context())
	var first sync.WaitGroup
	first.Go(func() { r.blk.Work(ctx, r.gate) })
	r.kick()
	<-disk.begun
	must(t, r.gate.Close(t.Context()))
	stop()
	disk.end <- nil
	first.Wait()
	r.want("a paused guest", []usedEntry{}...)
	run(r.blk.Work, r.gate, func() {
		r.gate.Open()
		<-disk.begun
		disk.end <- nil
		var got []usedEntry
		r.settled(func() bool { got = append(got, r.used()...); return len(got) > 0 })
		if len(got) != 1 || r.mem[testStatus] != blkOK {
			t.Errorf("answered %v, status %d", got, r.mem[testStatus])
		}
	})
}

// While one server waits for a flush the others perform requests, also those that were begun.
func TestOtherRequestsArePerformedDuringAFlush(t *testing.T) {
	b := newBoard(t)
	disk := &slow{&store{data: make([]byte, 64<<10)}, make(chan struct{}), make(chan error)}
	blk := NewBlk(disk, 2, "two", b.memory(), b.line, nil)
	for _, s := range blk.servers {
		s.buf = make([]byte, SectorSize) // so that the read has several parts
	}
	r := &blkRig{b, newRing(b, blk, 0, 0x10000), blk, disk.store}
	r.out(regFeatures, 4, blkFlush)
	r.request(blkSync, 0)
	run(r.blk.Work, r.gate, func() {
		r.kick()
		<-disk.begun
		const header = testHeader + 0x1000
		binary.LittleEndian.PutUint32(r.mem[header:], blkIn)
		r.offer(8, part{header, blkHeader, false}, part{testData, 4 * SectorSize, true}, part{testStatus + 8, 1, true})
		r.kick()
		var got []usedEntry
		r.settled(func() bool { got = append(got, r.used()...); return len(got) > 0 })
		if len(got) != 1 || got[0].head != 8 {
			t.Errorf("answered %v, want the read", got)
		}
		r.gate.Open()
		disk.end <- nil
	})
	r.want("the flush", usedEntry{0, 1})
}
