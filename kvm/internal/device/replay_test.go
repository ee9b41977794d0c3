package device

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// outcome is all that a driver and the world outside see of a device, from a moment on.
type outcome struct {
	memory, reads, disk, state []byte
	frames                     [][]byte
	syncs                      int32
	level                      bool
}

// outcome returns what is to be seen since the driver had read that many bytes of registers, and the uplink
// had taken that many frames.
func (h *hostile) outcome(reads, frames int, syncs int32) outcome {
	h.t.Helper()
	return outcome{
		memory: bytes.Clone(h.all), reads: bytes.Clone(h.reads[reads:]), disk: bytes.Clone(h.disk.data),
		state: stream(h.t, h.dev), frames: slices.Clone(h.up.frames[frames:]), syncs: h.disk.syncs.Load() - syncs, level: h.level,
	}
}

// differs says in what two outcomes differ.
func (o outcome) differs(p outcome) string {
	switch {
	case !bytes.Equal(o.reads, p.reads):
		return "the driver reads other registers"
	case !bytes.Equal(o.memory, p.memory):
		return "the device has written other memory"
	case !bytes.Equal(o.disk, p.disk):
		return "the disk holds something else"
	case o.syncs != p.syncs:
		return fmt.Sprintf("the disk is synced %d times, and was %d times", p.syncs, o.syncs)
	case !slices.EqualFunc(o.frames, p.frames, bytes.Equal):
		return fmt.Sprintf("the uplink takes %d frames, and took %d, or others", len(p.frames), len(o.frames))
	case o.level != p.level:
		return fmt.Sprintf("the line is %v, and was %v", p.level, o.level)
	case !bytes.Equal(o.state, p.state):
		return "the device has another state"
	}
	return ""
}

// play goes on with the program until it has so many bytes left.
func (h *hostile) play(left int) {
	for len(h.program) > left {
		h.step()
	}
}

// long resets a disk and offers it a request of several parts.
func (h *hostile) long(kind uint64) {
	const head, parts = 28, 6
	h.out(regStatus, 1, 0)
	h.avail = [2]uint16{}
	h.poke(hostileRings, make([]byte, queueBytes))
	h.place(0, hostileRings)
	h.poke(hostileHeader, binary.LittleEndian.AppendUint64(nil, kind)) // blkIn, blkOut
	h.poke(hostileHeader+8, make([]byte, 8))
	write := uint16(descWrite)
	if kind == blkOut {
		write = 0
	}
	for i, d := range []struct {
		at    uint64
		n     uint32
		flags uint16
	}{{hostileHeader, blkHeader, descNext}, {hostileData, 2 * parts * SectorSize, descNext | write}, {hostileHeader + 0x100, 1, descWrite}} {
		b := binary.LittleEndian.AppendUint64(nil, d.at)
		b = binary.LittleEndian.AppendUint32(b, d.n)
		b = binary.LittleEndian.AppendUint16(b, d.flags)
		h.poke(h.rings[0]+16*uint64(head+i), binary.LittleEndian.AppendUint16(b, uint16(head+i+1)))
	}
	h.offer(0, head)
}

// goOn does what opening the gate does at the end of a pause.
func (h *hostile) goOn() {
	switch d := h.dev.(type) {
	case *Blk:
		d.Kick()
	case *Net:
		d.Kick()
	case *RNG:
		d.Kick()
	}
	h.work()
}

// A guest is paused between two things that its driver does, at any moment, and its state is taken. If it is rolled back to that
// state later, or another host takes it over, and its driver does again what it did, all that is to be seen of the device is the same:
// what it writes and says, what leaves, what is on the disk. So nothing of after the pause is left in a device that was rolled
// back, and nothing of before it is missing in one that was loaded.
func TestWhatADriverDoesAfterARollBackHasTheSameOutcome(t *testing.T) {
	programs := 400
	if testing.Short() {
		programs = 30
	}
	begun := 0 // pauses in the midst of a request
	r := rand.New(rand.NewPCG(11, 13))
	for i := range programs {
		program := make([]byte, 1000)
		for j := range program {
			program[j] = byte(r.Uint32())
		}
		h := newHostile(t, uint8(i), program)
		h.place(0, h.rings[0])
		if i%4 == 1 || i%4 == 2 {
			h.place(1, h.rings[1])
		}
		for pause := 0; len(h.program) > 200; pause++ {
			h.play(len(h.program) - r.IntN(150))
			if i%4 == 0 && r.IntN(2) == 0 {
				h.long(uint64(r.IntN(2)))
			}
			h.steps([]int{0, 1, 2, 2 * QueueSize}[r.IntN(4)]) // a pause may come while there is work
			if b := h.registers().queues[0].begun; len(b) > 0 {
				begun++
			}
			state := stream(t, h.dev)
			rest, rings, avail := h.program, h.rings, h.avail
			memory, disk, none := bytes.Clone(h.all), bytes.Clone(h.disk.data), h.chaos.err
			dice := *h.chaos.ChaCha8
			reads, frames, syncs, full, failed := len(h.reads), len(h.up.frames), h.disk.syncs.Load(), h.up.full, h.disk.err
			var first outcome
			for _, back := range []string{"", "it was rolled back", "another host took it over"} {
				if back != "" {
					h.program, h.rings, h.avail = rest, rings, avail
					copy(h.all, memory)
					copy(h.shadow, memory)
					copy(h.disk.data, disk)
					*h.chaos.ChaCha8, h.chaos.err = dice, none
					h.up.full, h.disk.err = full, failed
					reads, frames, syncs = len(h.reads), len(h.up.frames), h.disk.syncs.Load()
				}
				switch back {
				case "it was rolled back":
					must(t, load(h.dev, state))
				case "another host took it over":
					h.dev = h.make()
					must(t, load(h.dev, state))
				}
				if back != "" && !bytes.Equal(stream(t, h.dev), state) {
					t.Fatalf("program %d, pause %d, %s: another state has arrived", i, pause, back)
				}
				h.goOn()
				h.play(max(len(h.program)-100, 100))
				h.work()
				got := h.outcome(reads, frames, syncs)
				if back == "" {
					first = got
				} else if what := first.differs(got); what != "" {
					t.Fatalf("program %d, pause %d: %s, and then %s", i, pause, back, what)
				}
			}
			h.check()
		}
	}
	if begun < programs/20 {
		t.Errorf("%d pauses came in the midst of a request: this test tests little", begun)
	}
}
