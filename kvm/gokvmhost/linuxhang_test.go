//go:build linux && amd64

package gokvmhost_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/kvm"
)

// What is looked at when a guest does not get on, or has reset itself: the threads of
// this process as the host's kernel sees them, each vCPU's registers, timer and pending
// interrupts, and where its kernel is. It is read twice, with the guest running between,
// so that what stands still shows.
func (l *linux) evidence(p *place) {
	l.t.Helper()
	for _, s := range hostThreads() {
		l.t.Log(s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for look := range 2 {
		if err := p.VM().Pause(ctx); err != nil {
			l.t.Logf("look %d: the vCPUs do not stop: %v", look, err)
			return
		}
		for _, v := range p.VM().VCPUs() {
			l.t.Logf("look %d: %s", look, vcpuSays(v, p.mem))
		}
		if err := p.VM().Resume(ctx); err != nil {
			l.t.Log(err)
			return
		}
		select { // time in which a guest that lives moves
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
		}
	}
}

// hostThreads says of each thread of this process where it is in the host's kernel.
func hostThreads() (list []string) {
	tasks, _ := filepath.Glob("/proc/self/task/*")
	for _, dir := range tasks {
		read := func(name string) string {
			b, _ := os.ReadFile(filepath.Join(dir, name))
			return strings.Join(strings.Fields(string(b)), " ")
		}
		stat := read("stat")
		_, rest, _ := strings.Cut(stat, ") ")
		f := append(strings.Fields(rest), make([]string, 40)...)
		list = append(list, fmt.Sprintf("thread %s: state %s, CPU %s, user %s and system %s ticks, system call %s, stack %s",
			filepath.Base(dir), f[0], f[36], f[11], f[12], read("syscall"), read("stack")))
	}
	return list
}

// vcpuSays describes a stopped vCPU, whose guest has mem.
func vcpuSays(v *kvm.VCPU, mem []byte) string {
	var b strings.Builder
	r, err := v.Regs()
	s, serr := v.Sregs()
	if err != nil || serr != nil {
		return fmt.Sprintf("vCPU %d cannot be read: %v, %v", v.Index(), err, serr)
	}
	fmt.Fprintf(&b, "vCPU %d: RIP %#x (%s) RSP %#x RFLAGS %#x CS %#x CR0 %#x CR2 %#x CR3 %#x CR4 %#x CR8 %#x EFER %#x GS %#x",
		v.Index(), r.RIP, symbol(r.RIP), r.RSP, r.RFLAGS, s.CS.Selector, s.CR0, s.CR2, s.CR3, s.CR4, s.CR8, s.EFER, s.GS.Base)
	for _, m := range []struct {
		name  string
		index uint32
	}{
		{"kernel GS", 0xc0000102}, {"TSC", 0x10}, {"TSC deadline", 0x6e0}, {"APIC base", 0x1b}, {"kvmclock", 0x4b564d01},
		{"APIC TPR", 0x808}, {"LVT timer", 0x832}, {"timer's count", 0x838}, {"timer's current", 0x839},
	} {
		if x, err := v.MSR(m.index); err == nil {
			fmt.Fprintf(&b, " %s %#x", m.name, x)
		}
	}
	for _, set := range []struct {
		name  string
		first uint32
	}{{"ISR", 0x810}, {"IRR", 0x820}} {
		for i := range uint32(8) {
			if x, err := v.MSR(set.first + i); err == nil && x != 0 {
				fmt.Fprintf(&b, " %s[%d] %#x", set.name, i*32, x)
			}
		}
	}
	fmt.Fprint(&b, " stack:")
	for at, n := r.RSP, 0; n < 24 && at < r.RSP+2048; at += 8 {
		word, ok := guestWord(mem, s.CR3, at)
		if !ok {
			break
		}
		if name := symbol(word); name != "" {
			fmt.Fprintf(&b, " %s", name)
			n++
		}
	}
	return b.String()
}

// guestWord reads a word of the guest's kernel by its page tables (Intel SDM volume 3,
// 4.5). ok is false where there is none.
func guestWord(mem []byte, cr3, linear uint64) (word uint64, ok bool) {
	const frame, large, present = 0x000ffffffffff000, 1 << 7, 1
	table := cr3 & frame
	for shift := 39; ; shift -= 9 {
		at := table + linear>>shift&511*8
		if at+8 > uint64(len(mem)) {
			return 0, false
		}
		entry := binary.LittleEndian.Uint64(mem[at:])
		if entry&present == 0 {
			return 0, false
		}
		table = entry & frame
		if shift == 12 || shift < 39 && entry&large != 0 {
			at := table&^(1<<shift-1) + linear&(1<<shift-1)
			if at+8 > uint64(len(mem)) {
				return 0, false
			}
			return binary.LittleEndian.Uint64(mem[at:]), true
		}
	}
}

// kernelText are the functions of the host's kernel, which is the guest's too, at the
// same addresses: neither has them randomised.
var kernelText []kernelSymbol

type kernelSymbol struct {
	at   uint64
	name string
}

// symbol names a kernel's address, "" if it is none of its code.
func symbol(at uint64) string {
	const text = 0xffffffff80000000
	if at < text {
		return ""
	}
	if kernelText == nil {
		kernelText = readSymbols()
	}
	i := sort.Search(len(kernelText), func(i int) bool { return kernelText[i].at > at }) - 1
	if i < 0 || i == len(kernelText)-1 {
		return ""
	}
	return fmt.Sprintf("%s+%#x", kernelText[i].name, at-kernelText[i].at)
}

func readSymbols() []kernelSymbol {
	list := []kernelSymbol{}
	f, err := os.Open("/proc/kallsyms")
	if err != nil {
		return list
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		w := strings.Fields(lines.Text())
		if len(w) != 3 || w[1] != "t" && w[1] != "T" { // with a fourth word it is a module's
			continue
		}
		if at, err := strconv.ParseUint(w[0], 16, 64); err == nil && at != 0 {
			list = append(list, kernelSymbol{at, w[2]})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].at < list[j].at })
	return list
}

// A guest's memory is read through its own page tables, with pages of each size.
func TestAGuestsWordIsFoundByItsPageTables(t *testing.T) {
	mem := make([]byte, 8<<20)
	put := func(at, value uint64) { binary.LittleEndian.PutUint64(mem[at:], value) }
	put(0x1000+8*511, 0x2003)
	put(0x2000+8*510, 0x3003)
	put(0x3000+8*8, 0x400083) // 2 MiB at 4 MiB
	put(0x3000+8*9, 0x4003)
	put(0x4000+8*3, 0x6003) // 4 KiB at 24 KiB
	put(0x401230, 0x1122334455667788)
	put(0x6078, 0x99)
	const base = 0xffffffff80000000
	for linear, want := range map[uint64]uint64{base + 8<<21 + 0x1230: 0x1122334455667788, base + 9<<21 + 0x3078: 0x99} {
		if got, ok := guestWord(mem, 0x1018, linear); !ok || got != want {
			t.Errorf("%#x: %#x, %v, want %#x", linear, got, ok, want)
		}
	}
	for _, linear := range []uint64{base, 0x1000, base + 9<<21} {
		if got, ok := guestWord(mem, 0x1018, linear); ok {
			t.Errorf("%#x is there: %#x", linear, got)
		}
	}
}
