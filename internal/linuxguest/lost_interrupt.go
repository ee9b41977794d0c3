package linuxguest

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// QEMU 7.2 changes a CPU's pending interrupts, where the CPU enters and leaves a guest,
// without the lock under which its other threads do that. One of the machine's own can be
// lost on the way: it stands in the local APIC for ever, and the CPU does not hear of it.
// If it was that of a timer which rings only once, nothing of the machine runs again.

// look is the state of a machine's CPUs and their local APICs, as the emulator's monitor
// prints it.
type look struct {
	registers string
	lapics    []string // by CPU
}

// look asks the emulator.
func (m *Machine) look(ctx context.Context) (l look, err error) {
	if l.registers, err = m.Ask(ctx, "info registers -a"); err != nil {
		return l, err
	}
	for i := range strings.Count(l.registers, "CPU#") {
		said, err := m.Ask(ctx, fmt.Sprint("info lapic ", i))
		if err != nil {
			return l, err
		}
		l.lapics = append(l.lapics, said)
	}
	return l, nil
}

// String returns all that the emulator has said.
func (l look) String() string {
	return l.registers + "\n" + strings.Join(l.lapics, "\n")
}

var (
	halted   = regexp.MustCompile(`RFL=([0-9a-f]{8}) .* HLT=1`)
	waiting  = regexp.MustCompile(`(?m)^IRR\s+(\d[^\n]*)`)
	priority = regexp.MustCompile(`PPR 0x([0-9a-f]{2})`)
)

// lost returns the CPUs that are halted though they take interrupts and have one pending that
// nothing masks, and which interrupt that is. No hardware stays like that for longer than a
// moment.
func (l look) lost() map[int]int {
	found := make(map[int]int)
	for i, cpu := range strings.Split(l.registers, "CPU#")[1:] {
		const takesInterrupts = 1 << 9
		flags := halted.FindStringSubmatch(cpu)
		if flags == nil || i >= len(l.lapics) {
			continue
		}
		rflags, err := strconv.ParseUint(flags[1], 16, 32)
		irr, ppr := waiting.FindStringSubmatch(l.lapics[i]), priority.FindStringSubmatch(l.lapics[i])
		if err != nil || rflags&takesInterrupts == 0 || irr == nil || ppr == nil {
			continue
		}
		least, err := strconv.ParseUint(ppr[1], 16, 8)
		if err != nil {
			continue
		}
		for word := range strings.FieldsSeq(irr[1]) {
			digits, _, _ := strings.Cut(word, "(") // how it is triggered follows
			if n, err := strconv.Atoi(digits); err == nil && n>>4 > int(least>>4) {
				found[i] = n
			}
		}
	}
	return found
}

// LostInterrupt looks at the CPUs of a machine twice, some seconds apart, and returns the
// evidence that the emulator has lost an interrupt, "" if there is none; and all that it
// has said.
func (m *Machine) LostInterrupt(ctx context.Context) (evidence, said string) {
	first, err := m.look(ctx)
	if err != nil {
		return "", err.Error()
	}
	select {
	case <-time.After(3 * time.Second): // of a machine that may live
	case <-ctx.Done():
	}
	second, err := m.look(ctx)
	said = fmt.Sprintf("first look:\n%v\nsecond look:\n%v", first, second)
	if err != nil {
		return "", fmt.Sprintf("%s\n%v", said, err)
	}
	before, now := first.lost(), second.lost()
	for cpu, n := range before {
		if now[cpu] == n {
			return fmt.Sprintf("the emulator has lost an interrupt: CPU %d of machine %s is halted, takes interrupts, and has %d pending", cpu, m.Name(), n), said
		}
	}
	return "", said
}
