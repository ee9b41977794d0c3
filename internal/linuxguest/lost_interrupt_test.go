package linuxguest

import (
	"maps"
	"os"
	"strings"
	"testing"
)

// seen returns what a QEMU 7.2 said of a machine that had stopped in its first minute: its one
// CPU was halted with the interrupt of its timer pending.
func seen(t *testing.T) look {
	t.Helper()
	var l look
	for file, to := range map[string]func(string){
		"testdata/registers.txt": func(s string) { l.registers = s },
		"testdata/lapic.txt":     func(s string) { l.lapics = []string{s} },
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		to(string(b))
	}
	return l
}

func TestAnInterruptThatAHaltedCPUDoesNotHearOfIsLost(t *testing.T) {
	if got := seen(t).lost(); !maps.Equal(got, map[int]int{0: 236}) {
		t.Errorf("lost: %v", got)
	}
	two := seen(t)
	two.registers = strings.Replace(two.registers, "HLT=1", "HLT=0", 1) + strings.Replace(two.registers, "CPU#0", "CPU#1", 1)
	two.lapics = append(two.lapics, strings.Replace(two.lapics[0], "IRR\t 236", "IRR\t 33(level) 251", 1))
	if got := two.lost(); !maps.Equal(got, map[int]int{1: 251}) {
		t.Errorf("of the second CPU: %v", got)
	}
}

func TestACPUThatMayHaltIsNoEvidence(t *testing.T) {
	for name, change := range map[string]struct{ old, new string }{
		"it runs":                    {"HLT=1", "HLT=0"},
		"it takes no interrupts":     {"RFL=00000246", "RFL=00000046"},
		"none is pending":            {"IRR\t 236", "IRR\t (none)"},
		"its priority is as high":    {"PPR 0x10", "PPR 0xe0"},
		"a vector that is no number": {"IRR\t 236", "IRR\t 2x"},
	} {
		l := seen(t)
		for _, s := range []*string{&l.registers, &l.lapics[0]} {
			*s = strings.Replace(*s, change.old, change.new, 1)
		}
		if l.String() == seen(t).String() {
			t.Errorf("%s: nothing was changed", name)
		}
		if got := l.lost(); len(got) != 0 {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := (look{registers: seen(t).registers}).lost(); len(got) != 0 {
		t.Errorf("without a local APIC: %v", got)
	}
}
