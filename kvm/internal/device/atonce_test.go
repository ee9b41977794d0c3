package device

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"
)

// loops sends back to a card what it sends.
type loops struct {
	uplink
	card *Net
	gate *Gate
}

// WritePacket implements Uplink.
func (l *loops) WritePacket(f []byte) error {
	_ = l.card.Receive(l.gate, f) // the card may be full
	return nil
}

// prepare makes a ring with 64 chains of which each has memory of its own: bytes to read, bytes to
// write, and a byte to write.
func prepare(b *board, base uint64) {
	le := binary.LittleEndian
	clear(b.mem[base:][:queueBytes])
	for head := range uint64(64) {
		at := base + 0x8000 + head*0x400
		le.PutUint32(b.mem[at:], blkIn)
		for i, p := range []part{{at, 64, false}, {at + 64, 512, true}, {at + 0x3ff, 1, true}} {
			d := b.mem[base+16*(3*head+uint64(i)):]
			le.PutUint64(d, p.addr)
			le.PutUint32(d[8:], p.n)
			flags, next := uint16(descNext), uint16(3*head)+uint16(i)+1
			if p.write {
				flags |= descWrite
			}
			if i == 2 {
				flags &^= descNext
			}
			le.PutUint16(d[12:], flags)
			le.PutUint16(d[14:], next)
		}
		le.PutUint16(b.mem[base+availAt+4+2*head:], uint16(3*head))
	}
	le.PutUint16(b.mem[base+availAt+2:], 64)
}

// Several vCPUs do to a device what they like, at once, while it works, and the guest is paused and
// rolled back in between. Nobody waits for ever, and the device works after a reset.
func TestVCPUsMayDoToADeviceWhatTheyLikeAtOnce(t *testing.T) {
	const ringA, ringB = 0x10000, 0x40000
	for name, build := range map[string]func(*board) (machinery, func(context.Context, *Gate), func(), int){
		"disk": func(b *board) (machinery, func(context.Context, *Gate), func(), int) {
			d := NewBlk(&store{data: make([]byte, 64<<10)}, 3, "at once", b.memory(), b.line, nil)
			return d, d.Work, d.Kick, 0
		},
		"card": func(b *board) (machinery, func(context.Context, *Gate), func(), int) {
			up := &loops{uplink: uplink{room: make(chan struct{})}, gate: b.gate}
			up.card = NewNet(up, 12, [6]byte{2}, b.memory(), b.line, nil)
			return up.card, up.card.Work, up.card.Kick, netTransmit
		},
		"randomness": func(b *board) (machinery, func(context.Context, *Gate), func(), int) {
			d := NewRNG(rand.NewChaCha8([32]byte{}), b.memory(), b.line, nil)
			return d, d.Work, d.Kick, 0
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBoard(t)
			prepare(b, ringA)
			prepare(b, ringB)
			dev, work, kick, q := build(b)
			out := func(reg uint16, n int, v uint32) {
				var p [4]byte
				binary.LittleEndian.PutUint32(p[:], v)
				if err := dev.Out(reg, p[:n]); err != nil {
					t.Error(err)
				}
			}
			var paused sync.RWMutex // a vCPU that runs holds it for reading
			vcpu := func(r *rand.Rand) {
				paused.RLock()
				defer paused.RUnlock()
				switch r.IntN(8) {
				case 0:
					out(regFeatures, 4, r.Uint32())
				case 1:
					out(regSelect, 2, uint32(r.IntN(3)))
				case 2, 3:
					out(regPFN, 4, [...]uint32{0, ringA / queueAlign, ringB / queueAlign}[r.IntN(3)])
				case 4, 5:
					out(regNotify, 2, uint32(r.IntN(3)))
				case 6:
					var p [4]byte
					dev.In(uint16(r.IntN(VirtioPorts)), p[:1<<r.IntN(3)])
				case 7:
					out(regStatus, 1, uint32(r.IntN(2)))
				}
			}
			run(work, b.gate, func() {
				var vcpus sync.WaitGroup
				for i := range uint64(3) {
					vcpus.Go(func() {
						r := rand.New(rand.NewPCG(7, i))
						for range 400 {
							vcpu(r)
						}
					})
				}
				var early []byte
				for range 20 {
					paused.Lock()
					must(t, b.gate.Close(t.Context()))
					now := stream(t, dev)
					if early == nil {
						early = now
					}
					must(t, load(dev, early))
					early = now
					b.gate.Open()
					kick()
					paused.Unlock()
				}
				vcpus.Wait()
				out(regStatus, 1, 0)
			})
			r := newRing(b, dev, uint16(q), ringA)
			r.offer(0, part{testHeader, 64, false}, part{testData, 1, true})
			binary.LittleEndian.PutUint32(b.mem[testHeader:], blkGetID)
			drain(dev.step)
			if got := r.used(); len(got) != 1 {
				t.Errorf("after a reset %d requests are served, of 1", len(got))
			}
		})
	}
}
