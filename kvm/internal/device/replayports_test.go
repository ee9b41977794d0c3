package device

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// plain is a device that works while its ports are accessed, and at no other time.
type plain struct {
	State
	line bool
	com  *Serial // nil: another device
}

// plains returns such devices by name, whose clocks stand still.
func plains() map[string]func() *plain {
	now := func() time.Time { return time.Unix(1e9, 0) }
	return map[string]func() *plain{
		"serial": func() *plain {
			d := &plain{}
			d.com = NewSerial(NewConsole(nil, nil), func(level bool) { d.line = level })
			d.State = d.com
			return d
		},
		"pci":  func() *plain { bus, _ := newBus(); return &plain{State: bus} },
		"cmos": func() *plain { return &plain{State: NewCMOS(1<<30, now)} },
		"pm":   func() *plain { return &plain{State: NewPM(now)} },
	}
}

// access accesses the ports so many times, as chance has it, and returns all that a guest sees.
func (d *plain) access(t *testing.T, r *rand.Rand, times int) (seen []byte) {
	gate := NewGate()
	gate.Open()
	for range times {
		ports, count := portsOf(d.State)
		off, p := uint16(r.IntN(count)), make([]byte, 1<<r.IntN(3))
		put(p, r.Uint32()>>r.IntN(32))
		typed, read, far := r.IntN(8) == 0, r.IntN(2) == 0, r.Uint32() // typed, or taken elsewhere
		switch {
		case typed && d.com != nil:
			if _, err := d.com.Input(gate, p); err != nil && !errors.Is(err, ErrFull) {
				t.Fatal(err)
			}
		case read:
			ports.In(off, p)
			seen = append(seen, p...)
		default:
			seen = fmt.Appendf(seen, "%v ", ports.Out(off, p))
		}
		if bus, ok := d.State.(*PCI); ok {
			if typed {
				bus.write(2, [...]uint32{pciBAR0, pciCommand}[far%2], far>>16, 4)
			}
			_, at := bus.Find(uint16(bus.config(2, pciBAR0)&^0xff | far&0xff))
			seen = fmt.Append(seen, at)
		}
		seen = fmt.Append(seen, d.line)
	}
	return seen
}

// What TestWhatADriverDoesAfterARollBackHasTheSameOutcome says of virtio devices holds for the others.
func TestWhatPortsSayAfterARollBackIsTheSame(t *testing.T) {
	for name, build := range plains() {
		d := build()
		r := rand.New(rand.NewPCG(5, 7))
		for round := range uint64(200) {
			d.access(t, r, r.IntN(100))
			state := stream(t, d.State)
			first := d.access(t, rand.New(rand.NewPCG(9, round)), 100)
			after := stream(t, d.State)
			must(t, load(d.State, state))
			if got := d.access(t, rand.New(rand.NewPCG(9, round)), 100); !bytes.Equal(got, first) || !bytes.Equal(stream(t, d.State), after) {
				t.Fatalf("%s, round %d: it was rolled back, and then says something else", name, round)
			}
			d = build()
			must(t, load(d.State, state))
			if got := d.access(t, rand.New(rand.NewPCG(9, round)), 100); !bytes.Equal(got, first) || !bytes.Equal(stream(t, d.State), after) {
				t.Fatalf("%s, round %d: another host took it over, and it says something else", name, round)
			}
		}
	}
}
