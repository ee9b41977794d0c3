package device

import (
	"encoding/binary"
	"testing"
)

// A driver that breaks the rules stops its own device, and nothing else: no memory
// is written, and a reset brings the device back.
func TestAQueueThatBreaksTheRulesIsLeftAlone(t *testing.T) {
	ok := part{testData, 512, true}
	for name, hostile := range map[string]func(r *blkRig){
		"available index too far ahead": func(r *blkRig) {
			r.request(blkSync, 0)
			binary.LittleEndian.PutUint16(r.mem[r.base+availAt+2:], QueueSize+1)
		},
		"next behind the table": func(r *blkRig) { // what is there would do
			binary.LittleEndian.PutUint16(r.mem[r.base+availAt+8:], 1)          // bytes
			binary.LittleEndian.PutUint16(r.mem[r.base+availAt+12:], descWrite) // flags
			r.desc(0, part{testHeader, blkHeader, false}, descNext, QueueSize)
			r.push(0)
		},
		"available index behind":   func(r *blkRig) { binary.LittleEndian.PutUint16(r.mem[r.base+availAt+2:], 0xffff) },
		"head beyond the table":    func(r *blkRig) { r.push(QueueSize) },
		"next beyond the table":    func(r *blkRig) { r.desc(0, ok, descNext, QueueSize); r.push(0) },
		"chain without an end":     func(r *blkRig) { r.desc(0, ok, descNext, 1); r.desc(1, ok, descNext, 0); r.push(0) },
		"descriptor of itself":     func(r *blkRig) { r.desc(0, ok, descNext, 0); r.push(0) },
		"memory beyond the end":    func(r *blkRig) { r.offer(0, part{testMemory - 511, 512, true}) },
		"address beyond the end":   func(r *blkRig) { r.offer(0, part{testMemory + 1, 0, true}) },
		"address that overflows":   func(r *blkRig) { r.offer(0, part{1<<64 - 16, 512, true}) },
		"length beyond the end":    func(r *blkRig) { r.offer(0, part{0, 1<<32 - 1, true}) },
		"indirect descriptor":      func(r *blkRig) { r.desc(0, ok, descIndirect, 0); r.push(0) },
		"read behind write":        func(r *blkRig) { r.offer(0, ok, part{testData, 512, false}) },
		"queue beyond the end":     func(r *blkRig) { r.out(regPFN, 4, testMemory/queueAlign-1) },
		"queue at the end of time": func(r *blkRig) { r.out(regPFN, 4, 1<<32-1) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newBlkRig(t, 1<<20)
			hostile(r)
			for range 3 {
				r.untouched(name, func() {
					r.kick()
					drain(r.blk.step)
				})
			}
			if level, rises := r.raised(); level || rises > 0 {
				t.Error("an interrupt")
			}
			if !r.blk.queues[0].broken {
				t.Error("the queue is not broken")
			}
			r.out(regStatus, 1, 0)
			r.ring = newRing(r.board, r.blk, 0, 0x20000)
			r.request(blkSync, 0)
			r.wantStatus("after a reset", blkOK, 1)
		})
	}
}

func TestTheLongestChainIsServed(t *testing.T) {
	r := newBlkRig(t, 1<<20)
	var parts []part
	for i := range QueueSize - 2 {
		parts = append(parts, part{testData + uint64(i)*SectorSize, SectorSize, true})
	}
	r.request(blkIn, 0, parts...)
	r.wantStatus("read", blkOK, (QueueSize-2)*SectorSize+1)
}

// The length of a chain is a number of 32 bits, in the used ring and here: a driver that names the
// same memory again and again, until it has more bytes than that, breaks the rules.
func TestAChainHasAsManyBytesAsItsLengthCanSay(t *testing.T) {
	const each = 1 << 32 / QueueSize
	for last, ok := range map[uint32]bool{each - 1: true, each: false} {
		mem := make([]byte, each) // of which the queue alone is touched
		q := queue{mem: NewMemory(mem, len(mem), func(gpa, n uint64) {})}
		q.setup(1)
		for i := range QueueSize {
			d := mem[queueAlign+16*i:]
			binary.LittleEndian.PutUint32(d[8:], each)
			binary.LittleEndian.PutUint16(d[12:], descWrite|descNext)
			binary.LittleEndian.PutUint16(d[14:], uint16(i+1))
			if i == QueueSize-1 {
				binary.LittleEndian.PutUint32(d[8:], last)
				binary.LittleEndian.PutUint16(d[12:], descWrite)
			}
		}
		binary.LittleEndian.PutUint16(mem[queueAlign+availAt+2:], 1)
		c, found, err := q.peek()
		if found != ok || (err == nil) != ok || q.broken == ok {
			t.Errorf("%d bytes: found %v, %v, broken %v", uint64(QueueSize-1)*each+uint64(last), found, err, q.broken)
		}
		if ok && size(c.in) != 1<<32-1 {
			t.Errorf("the chain has %d bytes", size(c.in))
		}
	}
}

// The fuzzer writes rings, descriptors and requests; whatever they are, the device
// works on memory only, marks what it writes, and comes to an end.
func FuzzChain(f *testing.F) {
	r := newBlkRig(f, 64<<10)
	r.request(blkIn, 3, part{testData, 1024, true})
	f.Add(r.mem[r.base:][:64], uint16(1), uint16(0))
	f.Add([]byte{0, 0, 8, 0, 0, 0, 0, 0, 16, 0, 0, 0, 1, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0}, uint16(3), uint16(1))
	f.Fuzz(func(t *testing.T, table []byte, avail, head uint16) {
		r := newBlkRig(t, 64<<10)
		copy(r.mem[r.base:][:availAt], table)
		for i := range QueueSize {
			binary.LittleEndian.PutUint16(r.mem[r.base+availAt+4+2*uint64(i):], head+uint16(i))
		}
		binary.LittleEndian.PutUint16(r.mem[r.base+availAt+2:], avail)
		r.watch(func() {
			for n := 0; r.blk.step(); n++ {
				if n > QueueSize+1<<16 {
					t.Fatal("the device does not come to an end")
				}
			}
		})
	})
}
