package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime"
	"sync"
	"testing"
)

// late is a store that fails from the second call on.
type late struct {
	*store
	begun bool
}

func (l *late) call() error {
	if l.begun {
		return errors.New("no")
	}
	l.begun = true
	return nil
}

func (l *late) ReadAt(p []byte, off int64) (int, error) {
	if err := l.call(); err != nil {
		return 0, err
	}
	return l.store.ReadAt(p, off)
}

func (l *late) WriteAt(p []byte, off int64) (int, error) {
	if err := l.call(); err != nil {
		return 0, err
	}
	return l.store.WriteAt(p, off)
}

// The driver may free a ring when it has taken the queue elsewhere: what was begun is answered in
// the ring from which it came.
func TestAQueueIsTakenElsewhereWhenTheRequestHasEnded(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	r.disk.hold, r.disk.begun = make(chan struct{}), make(chan struct{})
	run(r.blk.Work, r.gate, func() {
		r.request(blkOut, 0, part{testData, 512, false})
		r.kick()
		<-r.disk.begun
		moved := make(chan struct{})
		go func() {
			r.out(regPFN, 4, 0x40000/queueAlign)
			close(moved)
		}()
		for waits := false; !waits; {
			select {
			case <-moved:
				t.Error("the queue is elsewhere, and the request has not ended")
				waits = true
			default:
				waits = r.awaited()
				runtime.Gosched()
			}
		}
		close(r.disk.hold)
		<-moved
		r.want("the request", usedEntry{0, 1})
		if r.blk.queues[0].pfn != 0x40000/queueAlign {
			t.Error("the queue is where it was")
		}
	})
}

// The driver may free its memory when the reset returns.
func TestAResetWaitsForTheRequestThatWasBegun(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	r.disk.hold, r.disk.begun = make(chan struct{}), make(chan struct{})
	run(r.blk.Work, r.gate, func() {
		r.request(blkOut, 0, part{testData, 512, false})
		r.kick()
		<-r.disk.begun
		var wg sync.WaitGroup
		wg.Go(func() { r.out(regStatus, 1, 0) })
		close(r.disk.hold)
		wg.Wait()
		r.want("the request", usedEntry{0, 1})
		r.untouched("after the reset", func() {
			r.kick()
			r.blk.step()
		})
		if r.in(regISR, 1) != 0 || r.in(regStatus, 1) != 0 {
			t.Error("the reset left something")
		}
		if level, _ := r.raised(); level {
			t.Error("the line is up")
		}
	})
}

// Two requests are with the backend at once; they are answered as they end, and what takes
// the ring away waits for both.
func TestADiskServesAsManyRequestsAtOnceAsItWasTold(t *testing.T) {
	for name, end := range map[string]func(*blkRig){
		"pause": func(r *blkRig) { must(t, r.gate.Close(t.Context())) },
		"reset": func(r *blkRig) { r.out(regStatus, 1, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoard(t)
			disk := &store{data: make([]byte, 1<<20), hold: make(chan struct{}), begun: make(chan struct{})}
			blk := NewBlk(disk, 2, "two", b.memory(), b.line, nil)
			r := &blkRig{b, newRing(b, blk, 0, 0x10000), blk, disk}
			r.out(regFeatures, 4, blkFlush)
			status := func(head uint16) *byte { return &r.mem[testStatus+uint64(head)] }
			for i, head := range []uint16{0, 8, 16} {
				header, data := testHeader+0x1000+0x20*uint64(head), testData+0x1000*uint64(head)
				binary.LittleEndian.PutUint32(r.mem[header:], blkOut)
				binary.LittleEndian.PutUint64(r.mem[header+8:], uint64(i))
				copy(r.mem[data:], bytes.Repeat([]byte{byte(i + 1)}, SectorSize))
				*status(head) = 0xee
				r.offer(head, part{header, blkHeader, false}, part{data, SectorSize, false}, part{testStatus + uint64(head), 1, true})
			}
			run(r.blk.Work, r.gate, func() {
				r.kick()
				<-disk.begun
				<-disk.begun // the second, though nobody has let the first end
				select {
				case <-disk.begun:
					t.Error("a third request is begun")
				default:
				}
				ended := make(chan struct{})
				go func() { defer close(ended); end(r) }()
				for !r.awaited() {
					runtime.Gosched()
				}
				close(disk.hold)
				<-ended
			})
			if used := r.used(); len(used) != 2 || used[0].head+used[1].head != 8 {
				t.Errorf("returned %v, want those that were begun", used)
			}
			if *status(0) != blkOK || *status(8) != blkOK || *status(16) != 0xee {
				t.Errorf("answered %x %x %x", *status(0), *status(8), *status(16))
			}
			if disk.data[0] != 1 || disk.data[SectorSize] != 2 || disk.data[2*SectorSize] != 0 {
				t.Error("the disk has not what was written")
			}
		})
	}
}

// awaited reports whether a pause or a reset waits for the requests that were begun.
func (r *blkRig) awaited() bool {
	r.blk.mu.Lock()
	defer r.blk.mu.Unlock()
	if r.blk.held > 0 || !r.gate.TryEnter() {
		return true
	}
	r.gate.Leave()
	return false
}
