package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

var update = flag.Bool("update", false, "rewrite the files in testdata")

const vectors = "../../vmstate/testdata/qemu-7.2"

func vector(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(filepath.Join(vectors, name))
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".gz") {
		z, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		if p, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// colo is all that a COLO primary sends for a start and one checkpoint.
func colo(t testing.TB) []byte {
	return bytes.Join([][]byte{vector(t, "colo_none_1M_initial.bin"), {0, 0, 0, 1}, vector(t, "colo_none_1M_checkpoint1.bin")}, nil)
}

func written(t testing.TB, fn func(w *qemufile.Writer)) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	fn(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func run(stream []byte, args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = streamdump(append(args, "-"), bytes.NewReader(stream), &out, &errs)
	return status, out.String(), errs.String()
}

func TestGolden(t *testing.T) {
	answers := written(t, func(w *qemufile.Writer) {
		rw := vmstate.ReturnWriter{W: w}
		rw.Pong(1)
		rw.RequestPages("pc.ram", 0x1000, 0x2000)
		rw.RequestPages("pc.ram", 0x8000, 0x1000)
		rw.RecvBitmap("pc.ram", []uint64{1})
		rw.Shut(true)
	})
	for _, x := range []struct {
		name   string
		stream []byte
		args   []string
	}{
		{"precopy", vector(t, "precopy_none_1M.bin"), nil},
		{"precopy-fields", vector(t, "precopy_none_1M.bin"), []string{"-fields"}},
		{"precopy-json", vector(t, "precopy_none_1M.bin"), []string{"-json", "-fields"}},
		{"ignore-shared-json", vector(t, "precopy_none_1M_x-ignore-shared.bin"), []string{"-json", "-fields"}},
		{"postcopy-json", vector(t, "postcopy_none_8M_stream.bin"), []string{"-json", "-fields"}},
		{"colo", colo(t), []string{"-colo"}},
		{"colo-json", colo(t), []string{"-colo", "-json", "-fields"}},
		{"pc", vector(t, "pc-min-1m.mig.gz"), nil},
		{"pc-fields", vector(t, "pc-min-1m.mig.gz"), []string{"-fields"}},
		{"return-path", answers, []string{"-return-path", "-fields"}},
		{"return-path-json", answers, []string{"-return-path", "-json", "-fields"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			status, got, stderr := run(x.stream, append([]string{"-verify"}, x.args...)...)
			if status != 0 || stderr != "" {
				t.Errorf("status %d, %s", status, stderr)
			}
			file := filepath.Join("testdata", x.name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestEveryStreamVerifies(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(vectors, "*"))
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		name := filepath.Base(f)
		if name == "README.md" || strings.Contains(name, "checkpoint") || strings.Contains(name, "package") {
			continue
		}
		stream := vector(t, name)
		status, out, stderr := run(stream, "-json", "-fields", "-verify")
		if status != 0 {
			t.Errorf("%s: %s", name, stderr)
			continue
		}
		lines := strings.Split(strings.TrimSpace(out), "\n")
		at := int64(8)
		for _, l := range lines[:len(lines)-1] {
			var rec line
			if err := json.Unmarshal([]byte(l), &rec); err != nil {
				t.Fatalf("%s: %v in %s", name, err, l)
			}
			if rec.Offset > at {
				t.Fatalf("%s: a gap from %d to %d", name, at, rec.Offset)
			}
			at = max(at, rec.Offset+rec.Length)
		}
		if at != int64(len(stream)) {
			t.Errorf("%s: records end at %d of %d", name, at, len(stream))
		}
		var last map[string]summary
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || !last["summary"].OK || last["summary"].Bytes != at {
			t.Errorf("%s: %v %+v", name, err, last)
		}
	}
}

func TestABadStreamIsShownUpToWhereItBreaks(t *testing.T) {
	stream := colo(t)
	stride := 1
	if testing.Short() {
		stride = 7
	}
	for n := 0; n < len(stream); n += stride * (1 + n/256) {
		status, out, stderr := run(stream[:n], "-json", "-colo")
		if n == len(vector(t, "colo_none_1M_initial.bin")) || n == len(vector(t, "colo_none_1M_initial.bin"))+4 {
			continue // the primary went between two messages
		}
		// Where only the description is missing, the COLO messages are too.
		if status == 0 && strings.Count(out, "eof") == 1 && !strings.Contains(out, "vmdesc") {
			continue
		}
		if status != 1 || strings.Count(stderr, "\n") != 1 || !strings.HasPrefix(stderr, "streamdump: ") || n > 0 && !strings.Contains(stderr, "offset ") {
			t.Fatalf("cut at %d: status %d, %q", n, status, stderr)
		}
		if !strings.Contains(out, `"ok":false`) {
			t.Fatalf("cut at %d: %s", n, out)
		}
		if n > 100 && !strings.Contains(out, `"configuration"`) {
			t.Fatalf("cut at %d: what came before is missing: %s", n, out)
		}
	}
	status, out, stderr := run(append(vector(t, "precopy_none_1M.bin"), 1))
	if status != 1 || !strings.Contains(stderr, "offset 3085") || !strings.Contains(out, "bad: ") {
		t.Errorf("trailing: %d %q %q", status, out, stderr)
	}
	for why, tail := range map[string]string{"an unknown message": "\x00\x00\x00\x63", "a message of the other side": "\x00\x00\x00\x05", "a size beyond all bounds": "\x00\x00\x00\x04\xff\xff\xff\xff\xff\xff\xff\xff"} {
		status, _, stderr := run(append(vector(t, "colo_none_1M_initial.bin"), tail...), "-colo")
		if status != 1 || !strings.Contains(stderr, "offset 309") && !strings.Contains(stderr, "offset 310") {
			t.Errorf("%s: %d %q", why, status, stderr)
		}
	}
}

// Dirty bitmaps of disks are a live device that QEMU has and nothing here knows.
func TestUnknownLiveSectionsPassBy(t *testing.T) {
	header := vmstate.Header{Type: vmstate.SectionStart, ID: 3, Name: "dirty-bitmap", Version: 1}
	stream := written(t, func(w *qemufile.Writer) {
		vmstate.PutFileHeader(w)
		vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
		early := vmstate.Header{Type: vmstate.SectionFull, ID: 1, Name: "plug", Version: 1}
		early.Put(w)
		w.PutByte(7)
		vmstate.PutFooter(w, 1)
		header.Put(w)
		w.WriteString("whatever")
		vmstate.PutFooter(w, 3)
		header.Type = vmstate.SectionEnd
		header.Put(w)
		w.WriteString("it is")
		vmstate.PutFooter(w, 3)
		vmstate.PutEOF(w)
		vmstate.PutDescription(w, []byte(`{"page_size": 4096, "devices": [{"name": "plug", "instance_id": 0, "vmsd_name": "plug", "version": 1, "fields": [{"name": "x", "type": "uint8", "size": 1}]}]}`))
	})
	status, out, stderr := run(stream, "-verify", "-json", "-fields")
	if status != 0 {
		t.Error(stderr)
	}
	for _, want := range []string{
		`"kind":"start","id":3,"name":"dirty-bitmap","instance":0,"version":1,"length":39,"footer":true,"opaque":true}`,
		`"kind":"end","id":3,"name":"dirty-bitmap","instance":0,"version":1,"length":15,"footer":true,"opaque":true}`,
		`"kind":"vmdesc","length":163,"fields":{"early":{"plug/0":{"x":7}}}}`,
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nis not in\n%s", want, out)
		}
	}
	if _, out, _ := run(stream); !strings.Contains(out, "yes, opaque\n") {
		t.Errorf("%s", out)
	}
}

func TestACutDeviceStateIsShownUpToTheCut(t *testing.T) {
	stream := colo(t)
	status, out, stderr := run(stream[:len(stream)-10], "-colo", "-json", "-fields")
	if status != 1 || !strings.Contains(stderr, "unexpected EOF") || strings.Count(out, `"name":"timer"`) != 2 || strings.Contains(out, "undecoded") {
		t.Errorf("status %d, %s%s", status, stderr, out)
	}
}

func TestVerifySaysWhere(t *testing.T) {
	for _, x := range []struct {
		in, out string
		want    string
	}{
		{"abcdef", "abcdef", ""},
		{"abcdef", "abXdef", "offset 2"},
		{"abcdef", "abcdefg", "offset 6"},
		{"abcdef", "abcde", "has 5 bytes, and not 6"},
	} {
		var v verifier
		io.Copy(io.Discard, v.tee(strings.NewReader(x.in)))
		v.w.WriteString(x.out)
		if err := v.end(int64(len(x.in))); (err == nil) != (x.want == "") || err != nil && !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q for %q: %v", x.out, x.in, err)
		}
	}
}

func TestExtractedMemoryIsWhatCameLast(t *testing.T) {
	page := func(c byte) []byte { return bytes.Repeat([]byte{c}, ram.PageSize) }
	evil := "../evil/\x1b[2J"
	stream := written(t, func(w *qemufile.Writer) {
		vmstate.PutFileHeader(w)
		vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		for _, rec := range []ram.Record{
			{Kind: ram.KindBlockList, Total: 5 * ram.PageSize, Blocks: []ram.BlockInfo{{Name: "pc.ram", Length: 4 * ram.PageSize}, {Name: evil, Length: ram.PageSize}}},
			{Kind: ram.KindPage, Block: "pc.ram", Offset: 0, Data: page(1)},
			{Kind: ram.KindPage, Continue: true, Offset: 4096, Data: page(2)},
			{Kind: ram.KindZero, Continue: true, Offset: 0},
			{Kind: ram.KindXBZRLE, Continue: true, Offset: 4096, Data: []byte{5, 1, 0xaa}},
			{Kind: ram.KindZero, Continue: true, Offset: 8192},
			{Kind: ram.KindZero, Continue: true, Offset: 12288, Fill: 7},
			{Kind: ram.KindPage, Block: evil, Offset: 0, Data: page(9)},
			{Kind: ram.KindEOS},
		} {
			rec.Put(w, ram.Format{})
		}
		vmstate.PutFooter(w, 2)
		vmstate.PutEOF(w)
	})
	dir := t.TempDir()
	status, out, stderr := run(stream, "-extract-ram", filepath.Join(dir, "new"), "-verify")
	if status != 0 {
		t.Fatal(stderr)
	}
	if strings.Contains(out, "\x1b") {
		t.Error("a block's name moves the cursor")
	}
	second := page(2)
	second[5] = 0xaa
	for name, want := range map[string][]byte{
		"pc.ram":       bytes.Join([][]byte{page(0), second, page(0), page(7)}, nil),
		fileName(evil): page(9),
	} {
		path := filepath.Join(dir, "new", strings.TrimSuffix(name, ".bin")+".bin")
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		if st, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: others may read it: %v, %v", name, st.Mode(), err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("outside the directory: %q", left)
	}
}

func TestCommandLine(t *testing.T) {
	for _, x := range []struct {
		args   []string
		status int
		say    string
	}{
		{[]string{"-h"}, 0, ""},
		{nil, 2, "want one FILE"},
		{[]string{"a", "b"}, 2, "want one FILE"},
		{[]string{"-x", "a"}, 2, "not defined"},
		{[]string{"-return-path", "-colo", "a"}, 2, "neither"},
		{[]string{filepath.Join("testdata", "no such file")}, 1, "no such file"},
		{[]string{filepath.Join(vectors, "precopy_none_1M.bin")}, 0, ""},
	} {
		var out, errs bytes.Buffer
		if status := streamdump(x.args, nil, &out, &errs); status != x.status || !strings.Contains(errs.String(), x.say) || (x.say == "") != (errs.Len() == 0) {
			t.Errorf("%q: status %d, %q", x.args, status, errs.String())
		}
	}
	if status, _, stderr := run(nil); status != 1 || stderr != "streamdump: offset 0: the input is empty\n" {
		t.Errorf("nothing: %d %q", status, stderr)
	}
}

func TestProgressIsSaidNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := newProgress(&b)
		p.w = &b // as if it were a terminal
		for i := range 50 {
			p.at(int64(i) << 20)
			time.Sleep(100 * time.Millisecond)
		}
		p.done()
		if got, want := b.String(), "\x1b[?7l20 MiB read, 10 MiB/s\x1b[?7h\r\x1b[K\x1b[?7l40 MiB read, 10 MiB/s\x1b[?7h\r\x1b[K"; got != want {
			t.Errorf("got %q", got)
		}
	})
}

func TestProgressIsForTerminals(t *testing.T) {
	var b bytes.Buffer
	p := newProgress(&b)
	p.next = p.start
	if p.at(1 << 20); b.Len() > 0 {
		t.Errorf("said %q to nobody", b.String())
	}
}

// Nor does it keep the names that a hostile one makes up.
func TestEndlessBlocksAreRefused(t *testing.T) {
	stream := written(t, func(w *qemufile.Writer) {
		vmstate.PutFileHeader(w)
		vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		for i := range ram.MaxBlocks + 2 {
			rec := ram.Record{Kind: ram.KindZero, Block: fmt.Sprint(i)}
			rec.Put(w, ram.Format{})
		}
	})
	if status, _, stderr := run(stream); status != 1 || !strings.Contains(stderr, "more than 4096 blocks") {
		t.Errorf("status %d, %s", status, stderr)
	}
	// A block may say that it is long; memory is for what comes.
	stream = written(t, func(w *qemufile.Writer) {
		vmstate.PutFileHeader(w)
		vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		for _, rec := range []ram.Record{
			{Kind: ram.KindBlockList, Total: 1 << 40, Blocks: []ram.BlockInfo{{Name: "a", Length: 1 << 40}}},
			{Kind: ram.KindZero, Block: "a", Offset: 1<<40 - 4096, Fill: 1},
			{Kind: ram.KindEOS},
		} {
			rec.Put(w, ram.Format{})
		}
		vmstate.PutFooter(w, 2)
		vmstate.PutEOF(w)
	})
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	status, _, stderr := run(stream, "-extract-ram", t.TempDir())
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Errorf("status %d, %s%d bytes of memory", status, stderr, n)
	}
}

// A dump of a long stream keeps nothing of its memory.
func TestALongStreamTakesLittleMemory(t *testing.T) {
	page := bytes.Repeat([]byte{1}, ram.PageSize)
	pipe, feed := io.Pipe()
	const pages = 1 << 14
	go func() {
		w := qemufile.NewWriter(feed)
		vmstate.PutFileHeader(w)
		vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		list := ram.Record{Kind: ram.KindBlockList, Total: pages * ram.PageSize, Blocks: []ram.BlockInfo{{Name: "ram", Length: pages * ram.PageSize}}}
		list.Put(w, ram.Format{})
		for i := range uint64(pages) {
			rec := ram.Record{Kind: ram.KindPage, Block: "ram", Continue: i > 0, Offset: i * ram.PageSize, Data: page}
			rec.Put(w, ram.Format{})
		}
		w.PutBE64(0x10)
		vmstate.PutFooter(w, 2)
		vmstate.PutEOF(w)
		feed.CloseWithError(w.Flush())
	}()
	var d struct{ out, errs bytes.Buffer }
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if status := streamdump([]string{"-json", "-verify", "-"}, pipe, &d.out, &d.errs); status != 0 {
		t.Error(d.errs.String())
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > pages*ram.PageSize/8 {
		t.Errorf("%d bytes taken for %d pages", n, pages)
	}
	if want := fmt.Sprintf(`"pages":%d,`, pages); !strings.Contains(d.out.String(), want) {
		t.Errorf("%s", d.out.String())
	}
}

// Whoever has such a file wants to know how much of it there is, and that more belongs there.
func TestAnInputThatEndsTooSoonIsToldWithThePlaceWhereItDoes(t *testing.T) {
	stream := colo(t)
	whole := filepath.Join(t.TempDir(), "whole")
	if err := os.WriteFile(whole, stream, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{1, 3, 4, 7, 8, 11, len(stream) / 2, len(stream) - 10} {
		want := fmt.Sprintf("the input ends at offset %d, and at least a byte more belongs there: it was cut off", n)
		status, _, stderr := run(stream[:n], "-colo")
		if status != 1 || strings.Count(stderr, want) != 1 {
			t.Errorf("of %d bytes: status %d, %s", n, status, stderr)
		}
		if n > 11 {
			continue
		}
		status, _, stderr = run(stream[:n], "-diff", whole)
		if status != 1 || strings.Count(stderr, want) != 1 {
			t.Errorf("-diff of %d bytes: status %d, %s", n, status, stderr)
		}
	}
}
