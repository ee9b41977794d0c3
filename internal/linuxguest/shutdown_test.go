package linuxguest

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// handlerCode is the beginning of a handler as Debian's kernel 6.1 has it, in hex: it keeps its
// argument in a register, loads the address of the control block, and calls what clears that.
const handlerCode = "e8000000005553" + "4889fb" + "488b6f68" + "488bbf98190000" + "e800000000" + "f6830002000040"

func TestTheControlBlockIsFoundInTheHandler(t *testing.T) {
	code, err := hex.DecodeString(handlerCode)
	if err != nil {
		t.Fatal(err)
	}
	if at, err := controlBlock(code); err != nil || at != 0x1998 {
		t.Errorf("%#x, %v", at, err)
	}
	const call = 21 // where the call is that follows the load
	for n := range call + 1 {
		if at, err := controlBlock(code[:n]); err == nil {
			t.Errorf("%#x in %d bytes", at, n)
		}
	}
	code[call-1] = 0xff // beyond any structure
	if at, err := controlBlock(code); err == nil {
		t.Errorf("%#x", at)
	}
}

func TestAFileThatIsNoModuleHasNoProbe(t *testing.T) {
	file := filepath.Join(t.TempDir(), "kvm-amd.ko")
	if err := os.WriteFile(file, []byte("a text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if line, err := ShutdownProbe(file); err == nil {
		t.Error(line)
	}
	self, err := os.Executable() // an ELF file without that function
	if err != nil {
		t.Fatal(err)
	}
	if line, err := ShutdownProbe(self); err == nil || strings.Contains(line, "p:") {
		t.Error(line, err)
	}
}
