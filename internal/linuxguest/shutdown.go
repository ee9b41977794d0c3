package linuxguest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The kernel of a machine resets a vCPU that ends in a triple fault before the program that
// runs the guest can read its registers, which are the evidence of what caused the fault. So
// a probe on the kernel's own handler reads them out of the hardware's control block first.

// shutdownFields are the fields that the probe prints, by their names there, and their places in
// the control block. (AMD APM volume 2, appendix B.)
var shutdownFields = []struct {
	name string
	at   int
}{
	{"rip", 0x578}, {"rsp", 0x5d8}, {"rflags", 0x570}, {"cr0", 0x558}, {"cr2", 0x640}, {"cr3", 0x550}, {"cr4", 0x548},
	{"efer", 0x4d0}, {"cs", 0x410}, {"gs_base", 0x458}, {"kernel_gs_base", 0x620}, {"idt", 0x488}, {"gdt", 0x468},
	{"event_injected", 0xa8}, {"event_interrupted", 0x88},
}

// shutdownHandler is the function of the module kvm-amd.
const shutdownHandler = "shutdown_interception"

// ShutdownProbe returns the line for the machine's kprobe_events that has its kernel tell
// of each triple fault, for the kvm-amd module in a file. Where a vCPU's control block is
// differs from kernel to kernel; the handler itself is read for it, and it is an error
// where that does not look as it is known.
func ShutdownProbe(module string) (string, error) {
	f, err := elf.Open(module)
	if err != nil {
		return "", err
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		return "", fmt.Errorf("%s: %w", module, err)
	}
	for _, s := range symbols {
		if s.Name != shutdownHandler || int(s.Section) >= len(f.Sections) {
			continue
		}
		code := make([]byte, min(s.Size, 4096))
		if _, err := f.Sections[s.Section].ReadAt(code, int64(s.Value)); err != nil {
			return "", fmt.Errorf("%s: %w", module, err)
		}
		at, err := controlBlock(code)
		if err != nil {
			return "", fmt.Errorf("%s: %w", module, err)
		}
		var b strings.Builder
		fmt.Fprintf(&b, "p:shutdown kvm_amd:%s", shutdownHandler)
		for _, field := range shutdownFields {
			fmt.Fprintf(&b, " %s=+%#x(+%#x(%%di)):x64", field.name, field.at, at)
		}
		return b.String(), nil
	}
	return "", fmt.Errorf("%s: no function %s", module, shutdownHandler)
}

// controlBlock finds where the handler takes the control block from: it clears it, for
// which it loads its address from the vCPU, its first argument.
func controlBlock(code []byte) (int, error) {
	load := []byte{0x48, 0x8b, 0xbf} // mov offset(%rdi),%rdi
	i := bytes.Index(code, load)
	if i < 0 || i+len(load)+5 > len(code) || code[i+len(load)+4] != 0xe8 { // and a call
		return 0, errors.New("the handler of triple faults does not load its control block as it is known to")
	}
	at := int(int32(binary.LittleEndian.Uint32(code[i+len(load):])))
	if at <= 0 || at%8 != 0 || at > 1<<16 {
		return 0, fmt.Errorf("the handler of triple faults has its control block at %#x", at)
	}
	return at, nil
}
