package bzimage

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
)

// testKernel returns a kernel's header that asks for 16 to 20 MiB.
func testKernel(change func(k []byte)) io.ReaderAt {
	k := make([]byte, 4096)
	le := binary.LittleEndian
	k[bootSetupSectors] = 1
	le.PutUint32(k[bootSysSize:], 0x1000)
	le.PutUint16(k[bootFlag:], 0xaa55)
	copy(k[bootMagic:], "HdrS")
	le.PutUint16(k[bootVersion:], 0x20f)
	k[bootLoadFlags] = 1
	le.PutUint32(k[bootImageMax:], 0x7fffffff)
	le.PutUint32(k[bootCommandMax:], 100)
	le.PutUint64(k[bootPreferred:], 16<<20)
	le.PutUint32(k[bootInitSize:], 4<<20)
	if change != nil {
		change(k)
	}
	return bytes.NewReader(k)
}

func TestWhatIsNoKernelIsRefused(t *testing.T) {
	le := binary.LittleEndian
	for name, change := range map[string]func(k []byte){
		"no boot flag":           func(k []byte) { k[bootFlag] = 0 },
		"no magic":               func(k []byte) { k[bootMagic] = 'X' },
		"an old protocol":        func(k []byte) { le.PutUint16(k[bootVersion:], 0x20b) },
		"no real-mode code":      func(k []byte) { k[bootSetupSectors] = 0 },
		"all the real-mode code": func(k []byte) { k[bootSetupSectors] = 0xff },
		"loaded low":             func(k []byte) { k[bootLoadFlags] = 0 },
		"an address far away":    func(k []byte) { le.PutUint64(k[bootPreferred:], 1<<63) },
	} {
		if _, err := Parse(testKernel(change)); !errors.Is(err, ErrKernel) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, short := range []string{"", "\x7fELF", strings.Repeat("x", 700)} {
		if _, err := Parse(strings.NewReader(short)); !errors.Is(err, ErrKernel) {
			t.Errorf("%d bytes: %v", len(short), err)
		}
	}
}

func TestAKernelThatEndsBeforeItsCodeIsRefusedWithTheReason(t *testing.T) {
	for _, units := range []uint32{0, 1, 0x1000} { // of 16 bytes; there are 3072 of code
		kernel := testKernel(func(k []byte) { binary.LittleEndian.PutUint32(k[bootSysSize:], units) })
		b, err := Parse(kernel)
		if err != nil {
			t.Fatal(err)
		}
		err = b.Load(make([]byte, 2<<20), kernel, "", nil, 0)
		if units == 1 {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		if !errors.Is(err, ErrKernel) || strings.Contains(err.Error(), "%!") || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d units: %v", units, err)
		}
	}
}

func TestTheRAMDiskGoesBehindTheKernelOrNowhere(t *testing.T) {
	b, err := Parse(testKernel(nil))
	if err != nil {
		t.Fatal(err)
	}
	for memory, fits := range map[uint64]bool{20 << 20: true, 20<<20 - 1: false} {
		if at, err := b.Fit(memory, "quiet"); (err == nil) != fits || fits && at != 20<<20 {
			t.Errorf("%d bytes of memory: %#x, %v", memory, at, err)
		}
	}
	if _, err := b.Fit(64<<20, strings.Repeat("x", 101)); !errors.Is(err, ErrKernel) {
		t.Error("a long command line:", err)
	}
	if _, err := b.Fit(64<<20, "a\x00b"); !errors.Is(err, ErrKernel) {
		t.Error("a zero in the command line:", err)
	}
	// A kernel that is larger than what it unpacks to.
	large, err := Parse(testKernel(func(k []byte) { binary.LittleEndian.PutUint32(k[bootSysSize:], 30<<20/16) }))
	if err != nil {
		t.Fatal(err)
	}
	if at, err := large.Fit(64<<20, ""); err != nil || at != 32<<20 {
		t.Errorf("%#x, %v", at, err)
	}

	mem := make([]byte, 24<<20)
	disk := bytes.Repeat([]byte("disk"), 1<<18)
	if err := b.PlaceRAMDisk(mem, 20<<20, bytes.NewReader(disk)); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	at, n := le.Uint32(mem[Parameters+bootImage:]), le.Uint32(mem[Parameters+bootImageSize:])
	if !bytes.Equal(mem[at:][:n], disk) {
		t.Error("it is not where the parameters say")
	}
	exactly := make([]byte, 4<<20)
	if err := b.PlaceRAMDisk(mem, 20<<20, bytes.NewReader(exactly)); err != nil {
		t.Error("as large as the room:", err)
	}
	if err := b.PlaceRAMDisk(mem, 20<<20, bytes.NewReader(append(exactly, 1))); !errors.Is(err, ErrKernel) {
		t.Error("larger than the room:", err)
	}
	if err := b.PlaceRAMDisk(mem, 24<<20, bytes.NewReader(disk)); !errors.Is(err, ErrKernel) {
		t.Error("no room:", err)
	}
	b.imageMax = 20<<20 + 99
	if err := b.PlaceRAMDisk(mem, 20<<20, bytes.NewReader(make([]byte, 101))); !errors.Is(err, ErrKernel) {
		t.Error("beyond what the kernel reaches:", err)
	}
	if err := b.PlaceRAMDisk(mem, 20<<20, failingReader{}); err == nil || errors.Is(err, ErrKernel) {
		t.Error("a file that cannot be read:", err)
	}
}

type failingReader struct{}

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, errors.New("no") }
