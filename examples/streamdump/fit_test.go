package main

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

// file returns the name of a file with one of testdata/streams in it, unpacked
// where it is packed.
func file(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join("testdata", "streams")
	plain := filepath.Join(dir, name)
	if _, err := os.Stat(plain); err == nil {
		return plain
	}
	f, err := os.Open(plain + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(out, p, 0o666); err != nil {
		t.Fatal(err)
	}
	return out
}

// a dump is the program's answer about a file.
type answer struct {
	status         int
	stdout, stderr string
	lines          []map[string]any
	sum            summary
}

func dumpFile(t testing.TB, args ...string) answer {
	t.Helper()
	var out, errs bytes.Buffer
	a := answer{status: streamdump(args, nil, &out, &errs)}
	a.stdout, a.stderr = out.String(), errs.String()
	if slices.Contains(args, "-json") && !slices.Contains(args, "-diff") && !slices.Contains(args, "-against") {
		for _, l := range strings.Split(strings.TrimSpace(a.stdout), "\n") {
			var m map[string]any
			if err := json.Unmarshal([]byte(l), &m); err != nil {
				t.Fatalf("%v: %s", err, l)
			}
			a.lines = append(a.lines, m)
		}
		var last map[string]summary
		if err := json.Unmarshal([]byte(out.Bytes()[strings.LastIndex(strings.TrimSpace(a.stdout), "\n")+1:]), &last); err != nil {
			t.Fatal(err)
		}
		a.sum = last["summary"]
	}
	return a
}

// undecoded lists the devices whose fields are not shown.
func (a answer) undecoded() (names []string) {
	for _, l := range a.lines {
		if f, ok := l["fields"].(map[string]any); ok && f["undecoded"] != nil {
			names = append(names, l["name"].(string))
		}
	}
	return names
}

func TestADeviceThatDoesNotFitCostsOnlyItself(t *testing.T) {
	for i, x := range []struct {
		file    string
		status  int
		devices int
		lost    string
		say     string
	}{
		{"pc.mig", 0, 30, "", ""},
		{"pc-piix4-longer.mig", 0, 30, "0000:00:01.3/piix4_pm", "device 0000:00:01.3/piix4_pm: described 2432 bytes, found 2440"},
		{"pc-piix4-shorter.mig", 0, 30, "0000:00:01.3/piix4_pm", "device 0000:00:01.3/piix4_pm: described 2432 bytes, found 2424"},
		{"pc-description-digit.mig", 0, 30, "mc146818rtc", "device mc146818rtc: described 246 bytes, found 245"},
		{"pc-description-inner.mig", 0, 30, "fdc", "device fdc: state: drives: no subsection fdrive/media_rate"},
		{"pc-description-byte.mig", 1, 30, "cpu_common", "at byte 400: invalid character"},
		{"s390-ccw-virtio.mig", 0, 13, "s390_css", "device s390_css: described 272 bytes, found 1039"},
		{"null-first.mig", 0, 2, "css", "device css: described 2 bytes, found 5"},
		{"nested-8.mig", 0, 1, "dev", "device dev: more than 16 MiB of values"},
	} {
		t.Run(x.file, func(t *testing.T) {
			if testing.Short() && i%2 == 0 {
				t.Skip("short: every second")
			}
			a := dumpFile(t, "-json", "-fields", "-verify", file(t, x.file))
			if a.status != x.status || a.sum.Devices != x.devices {
				t.Errorf("status %d, %d devices: %s", a.status, a.sum.Devices, a.stderr)
			}
			if got := strings.Join(a.undecoded(), " "); got != x.lost {
				t.Errorf("not decoded: %s", got)
			}
			if !strings.Contains(a.stderr, x.say) || x.say == "" && a.stderr != "" {
				t.Errorf("said %q", a.stderr)
			}
			table := dumpFile(t, file(t, x.file))
			if n := strings.Count(table.stdout, "does not fit its description"); (n == 1) != (x.lost != "") {
				t.Errorf("%d devices are marked:\n%s", n, table.stdout)
			}
		})
	}
}

func TestWhatOldMachinesLeaveOutIsFoundOut(t *testing.T) {
	for _, x := range []struct {
		file           string
		devices, pages int
		guessed        bool
	}{
		{"none-no-configuration.mig", 2, 1024, false},
		{"pc-no-footers.mig", 30, 1106, false},
		{"pc-i440fx-2.3.mig", 28, 1106, false},
		{"pc-i440fx-2.2.mig", 28, 1105, true},
	} {
		a := dumpFile(t, "-json", "-fields", "-verify", file(t, x.file))
		if a.status != 0 || a.sum.Devices != x.devices || int(a.sum.Pages) != x.pages {
			t.Errorf("%s: status %d, %+v, %s", x.file, a.status, a.sum, a.stderr)
		}
		if n := len(a.undecoded()); (n == x.devices) != x.guessed || n > 0 && !x.guessed {
			t.Errorf("%s: %d devices are not decoded", x.file, n)
		}
		if said := strings.Contains(a.stderr, "guessed") && strings.Contains(a.stderr, "-describe"); said != x.guessed {
			t.Errorf("%s: %q", x.file, a.stderr)
		}
	}
	// What another stream of the machine says helps.
	a := dumpFile(t, "-json", "-fields", "-verify", "-describe", file(t, "pc-i440fx-2.3.mig"), file(t, "pc-i440fx-2.2.mig"))
	if lost := a.undecoded(); a.status != 0 || a.sum.Devices != 28 || len(lost) > 1 {
		t.Errorf("described by another: status %d, not decoded %q, %s", a.status, lost, a.stderr)
	}
	if table := dumpFile(t, file(t, "pc-i440fx-2.2.mig")); strings.Count(table.stdout, ", guessed") != 28 {
		t.Errorf("the table does not say what is guessed:\n%s", table.stdout)
	}
}

func TestPagesOfEverySizeAreRead(t *testing.T) {
	for name, pages := range map[string]int{"lm3s811evb.mig": 72, "arduino-uno.mig": 144} {
		path := file(t, name)
		dir := t.TempDir()
		a := dumpFile(t, "-json", "-verify", "-extract-ram", dir, path)
		if a.status != 0 || int(a.sum.Pages) != pages {
			t.Errorf("%s: status %d, %+v, %s", name, a.status, a.sum, a.stderr)
		}
		// A pipe has no description to look at first.
		stream, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		status, out, stderr := run(stream, "-json", "-verify")
		if status != 0 || out != dumpFile(t, "-json", "-verify", path).stdout {
			t.Errorf("%s from a pipe: status %d, %s", name, status, stderr)
		}
		if status, _, stderr := run(stream, "-page-size", "8192"); status != 1 || !strings.Contains(stderr, "unknown combination of flags") {
			t.Errorf("%s with another size: status %d, %s", name, status, stderr)
		}
	}
	// The device state must be the same for what is one guest.
	for _, n := range []string{"3", "100", "131072"} {
		if a := dumpFile(t, "-page-size", n, "x"); a.status != 2 {
			t.Errorf("-page-size %s: %d", n, a.status)
		}
	}
}

// sum is the SHA-256 of pc.ram of the guest that multifd.mig and mapped-ram.mig
// have.
const pcRAM = "d946d6b12b48436e7523baf139db9d77e73cc2392897382ebf59cc0872ff4052"

func sum(t testing.TB, dir string) string {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(dir, "pc.ram.bin"))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(p))
}

func TestMemoryThatIsElsewhereIsMissed(t *testing.T) {
	dir := t.TempDir()
	path := file(t, "multifd.mig")
	a := dumpFile(t, "-json", "-extract-ram", dir, path)
	if a.status != 1 || !strings.Contains(a.stderr, "14 of 1106 pages did not come") || a.sum.OK {
		t.Errorf("alone: status %d, %s", a.status, a.stderr)
	}
	missing := int64(0)
	for _, b := range a.sum.Blocks {
		missing += b.Missing
	}
	if missing != 14 || len(a.sum.Blocks) != 6 {
		t.Errorf("blocks %+v", a.sum.Blocks)
	}
	table := dumpFile(t, path)
	if !strings.Contains(table.stdout, "MISSING") || !strings.Contains(table.stdout, "/rom@etc/acpi/rsdp") {
		t.Errorf("a block without pages is not listed:\n%s", table.stdout)
	}
	ch0, ch1 := file(t, "multifd.ch0"), file(t, "multifd.ch1")
	for _, order := range [][]string{{ch0, ch1}, {ch1, ch0}} {
		a = dumpFile(t, "-json", "-verify", "-extract-ram", dir, "-channel", order[0], "-channel", order[1], path)
		if a.status != 0 || sum(t, dir) != pcRAM || a.sum.Pages != 1106 {
			t.Errorf("with its channels: status %d, %s, %+v", a.status, a.stderr, a.sum)
		}
	}
	a = dumpFile(t, "-channel", ch0, path)
	if a.status != 1 || !strings.Contains(a.stderr, "did not come, neither in the stream nor over 1 channels") {
		t.Errorf("with one channel: status %d, %s", a.status, a.stderr)
	}
	for say, args := range map[string][]string{
		"another of the same number": {"-channel", ch0, "-channel", ch0, path},
		"not a multifd channel":      {"-channel", path, path},
		"give it with -channel":      {ch0},
	} {
		if a := dumpFile(t, args...); a.status != 1 || !strings.Contains(a.stderr, say) {
			t.Errorf("%s: status %d, %s", say, a.status, a.stderr)
		}
	}
}

func TestAMappedFileIsRead(t *testing.T) {
	dir := t.TempDir()
	path := file(t, "mapped-ram.mig")
	a := dumpFile(t, "-json", "-fields", "-verify", "-extract-ram", dir, path)
	if a.status != 0 || a.sum.Devices != 30 || len(a.undecoded()) > 0 || sum(t, dir) != pcRAM {
		t.Errorf("status %d, %s, %+v", a.status, a.stderr, a.sum)
	}
	stream, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	if status, _, stderr := run(stream, "-extract-ram", dir); status != 0 || sum(t, dir) != pcRAM {
		t.Errorf("from a pipe: status %d, %s", status, stderr)
	}
}

func TestWhatSurroundsAStreamIsTakenAwayOrNamed(t *testing.T) {
	none := dumpFile(t, "-json", "-fields", file(t, "none-padding.mig"))
	if none.status != 0 || !strings.Contains(none.stderr, "512 zeros follow the end") {
		t.Errorf("padding: status %d, %s", none.status, none.stderr)
	}
	for _, x := range []struct {
		file   string
		status int
		say    string
	}{
		{"libvirt.save", 0, ""},
		{"libvirt-gzip.save", 0, "gzip"},
		{"none.mig.gzipped", 0, "gzip"},
		{"none.mig.zst", 1, "zstd -dc"},
		{"backup.vma", 1, "VMA"},
	} {
		a := dumpFile(t, "-json", "-fields", "-verify", file(t, x.file))
		if a.status != x.status || !strings.Contains(a.stderr, x.say) {
			t.Errorf("%s: status %d, %s", x.file, a.status, a.stderr)
		}
		if x.status == 0 && a.sum.Devices != none.sum.Devices {
			t.Errorf("%s: %+v", x.file, a.sum)
		}
	}
	xml := dumpFile(t, "-d", "xml", file(t, "libvirt.save"))
	if xml.status != 0 || !strings.HasPrefix(xml.stdout, "<domain type='kvm'><name>guest</name>") {
		t.Errorf("the domain: %d %s%s", xml.status, xml.stdout, xml.stderr)
	}
	image, err := os.ReadFile(file(t, "libvirt.save"))
	if err != nil {
		t.Fatal(err)
	}
	for say, change := range map[string]func(p []byte){
		"never finished":         func(p []byte) { copy(p, libvirtPartial) },
		"tail -c +1025 FILE | ":  func(p []byte) { p[28] = 3 },
		"compressed with zstd":   func(p []byte) { p[28] = 5 },
		"compressed with unknow": func(p []byte) { p[28] = 99 },
		"too long":               func(p []byte) { p[23] = 0x7f },
	} {
		p := bytes.Clone(image)
		change(p)
		if status, _, stderr := run(p); status != 1 || !strings.Contains(stderr, say) {
			t.Errorf("%s: status %d, %s", say, status, stderr)
		}
	}
	// A host of the other byte order.
	p := bytes.Clone(image)
	for i := 16; i < libvirtHeader; i += 4 {
		slices.Reverse(p[i : i+4])
	}
	if status, out, stderr := run(p, "-json", "-verify"); status != 0 || !strings.Contains(out, `"kind":"libvirt"`) {
		t.Errorf("big endian: status %d, %s", status, stderr)
	}
	for magic, name := range map[string]string{
		"\xfd7zXZ\x00": "xz", "\x89LZO\x00\r\n\x1a\n": "lzop", "QFI\xfb": "qcow2", "\x04\x22\x4d\x18": "lz4", "\x7fELF": "ELF", "\x11\x22\x33\x44": "multifd",
	} {
		if status, _, stderr := run([]byte(magic + strings.Repeat("x", 100))); status != 1 || !strings.Contains(stderr, name) {
			t.Errorf("%s: status %d, %s", name, status, stderr)
		}
	}
}

func TestTheDescriptionIsPrintedAlone(t *testing.T) {
	a := dumpFile(t, "-d", "desc", file(t, "pc.mig"))
	desc, err := vmstate.ParseVMDesc([]byte(a.stdout))
	if a.status != 0 || err != nil || len(desc.Devices) != 30 {
		t.Errorf("status %d, %v, %s", a.status, err, a.stderr)
	}
	if a := dumpFile(t, "-d", "desc", file(t, "pc-i440fx-2.2.mig")); a.status != 1 || !strings.Contains(a.stderr, "no description") || a.stdout != "" {
		t.Errorf("without one: status %d, %s", a.status, a.stderr)
	}
	if a := dumpFile(t, "-d", "all", "x"); a.status != 2 {
		t.Errorf("-d all: %d", a.status)
	}
}

func TestCompressedChannelsAreRead(t *testing.T) {
	for _, method := range []string{"zlib", "zstd"} {
		dir := t.TempDir()
		args := []string{"-json", "-verify", "-extract-ram", dir}
		for i := range 2 {
			args = append(args, "-channel", file(t, fmt.Sprintf("multifd-%s.ch%d", method, i)))
		}
		a := dumpFile(t, append(args, file(t, "multifd-"+method+".mig"))...)
		// The sum is that of the same guest migrated without multifd.
		if got := sum(t, dir); a.status != 0 || got != "821009df088e24dbccf389a968294162acf2833e6ced9a186728bfbfa29ed1e0" {
			t.Errorf("%s: status %d, %s, %s", method, a.status, a.stderr, got)
		}
	}
}

// A package of postcopy has no description of its own.
func TestAnotherStreamDescribesAPackage(t *testing.T) {
	stream := vector(t, "postcopy_none_8M_stream.bin")
	status, out, stderr := run(stream, "-json", "-fields", "-verify")
	if status != 0 || strings.Count(out, "undecoded") != 2 {
		t.Errorf("alone: status %d, %s%s", status, out, stderr)
	}
	status, out, stderr = run(stream, "-json", "-fields", "-verify", "-describe", filepath.Join(vectors, "precopy_none_1M.bin"))
	if status != 0 || strings.Contains(out, "undecoded") || !strings.Contains(out, `"runstate.text":`) {
		t.Errorf("described: status %d, %s%s", status, out, stderr)
	}
	// The description alone will do too.
	desc := filepath.Join(t.TempDir(), "desc.json")
	if err := os.WriteFile(desc, []byte(dumpFile(t, "-d", "desc", filepath.Join(vectors, "precopy_none_1M.bin")).stdout), 0o666); err != nil {
		t.Fatal(err)
	}
	if status, out, stderr := run(stream, "-json", "-fields", "-describe", desc); status != 0 || strings.Contains(out, "undecoded") {
		t.Errorf("described by JSON: status %d, %s%s", status, out, stderr)
	}
}
