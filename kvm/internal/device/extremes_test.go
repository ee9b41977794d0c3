package device

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
)

// extremes are values at which a count, an index, an address or a set of bits may be one too many.
var extremes = []uint64{
	0, 1, QueueSize - 1, QueueSize, QueueSize + 1, serialInput, serialInput + 1, 1<<15 - 1, 1 << 15, 1<<16 - 1,
	testMemory / queueAlign, testMemory/queueAlign - 1, netQueued, netQueued + 1, 1<<31 - 1, 1 << 31, 1<<32 - 1, 1<<63 - 1, 1 << 63, 1<<64 - 1,
}

// Each place of each state has each extreme value, as wide as any field is: so has each field. Such a state
// is refused with its place, and nothing of it is taken, or it is a state like others: whatever the guest
// then does to the device, its state is taken elsewhere.
func TestEveryFieldMayHaveItsExtremes(t *testing.T) {
	accesses, apart := 1000, 1
	if testing.Short() {
		accesses, apart = 20, 2 // and half of the widths at each byte
	}
	for name, from := range all(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(7, uint64(len(name))))
			good := stream(t, from)
			to, twin := all(t)[name], all(t)[name]
			before := stream(t, to)
			took, refused := 0, 0
			seen := map[string]bool{string(good): true}
			for at := range good {
				for log := at % apart; log < 4 && at+1<<log <= len(good); log += apart {
					width := 1 << log
					for _, v := range extremes {
						bad := bytes.Clone(good)
						var p [8]byte
						binary.BigEndian.PutUint64(p[:], v)
						copy(bad[at:at+width], p[8-width:])
						if seen[string(bad)] {
							continue
						}
						seen[string(bad)] = true
						if err := load(to, bad); err != nil {
							refused++
							wantTyped(t, err)
							if !bytes.Equal(stream(t, to), before) {
								t.Fatalf("bytes %d to %d are %#x: refused, and half of it was taken", at, at+width, v)
							}
							continue
						}
						took++
						use(t, r, to, accesses)
						if err := load(twin, stream(t, to)); err != nil {
							t.Fatalf("bytes %d to %d are %#x: taken, and refused when it was saved again: %v", at, at+width, v, err)
						}
						must(t, load(to, before))
					}
				}
			}
			if took == 0 || refused == 0 {
				t.Errorf("%d states were taken and %d refused: this test tests little", took, refused)
			}
			t.Logf("%d states were taken and %d refused", took, refused)
		})
	}
}

// use accesses a device's registers at random, and has it work on its rings.
func use(t *testing.T, r *rand.Rand, s State, n int) {
	t.Helper()
	ports, count := portsOf(s)
	for range n {
		off, p := uint16(r.IntN(count)), make([]byte, 1<<r.IntN(3))
		if r.IntN(2) == 0 {
			ports.In(off, p)
			continue
		}
		put(p, r.Uint32()>>r.IntN(32))
		if err := ports.Out(off, p); err != nil && !errors.Is(err, ErrPowerOff) && !errors.Is(err, ErrReset) {
			t.Fatal(err)
		}
		switch d := s.(type) {
		case *Serial:
			d.Kick()
		case *PCI:
			d.Find(uint16(r.Uint32()))
		case *PM:
			PMTimer{d}.In(off&3, p)
		case *Net:
			open := NewGate()
			open.Open()
			if err := d.Receive(open, make([]byte, d.vnet+MinFrame+r.IntN(200))); err != nil && !errors.Is(err, ErrFull) && !errors.Is(err, ErrFrame) {
				t.Fatal(err)
			}
			d.Kick()
			d.step()
		case machinery:
			d.step()
		}
	}
}
