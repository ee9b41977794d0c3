package main

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// maxResident bounds the resident memory of the program, whatever it is given, in bytes.
const maxResident = 200 << 20

// A hostile input, written to a file.
type hostile struct {
	name  string
	args  []string
	write func(w *qemufile.Writer)
	slow  bool // only with -hostile.all
}

var allHostile = flag.Bool("hostile.all", false, "feed the program the hostile streams too that take seconds")

func deviceOf(w *qemufile.Writer, name string, body func()) {
	vmstate.Header{Type: vmstate.SectionFull, ID: 3, Name: name, Version: 1}.Put(w)
	body()
	vmstate.PutFooter(w, 3)
}

func fill(w *qemufile.Writer, n int, p []byte) {
	for ; n > 0; n -= len(p) {
		w.Write(p[:min(n, len(p))])
	}
}

func describe(w *qemufile.Writer, devices string) {
	vmstate.PutEOF(w)
	vmstate.PutDescription(w, fmt.Appendf(nil, `{"page_size": 4096, "devices": [%s]}`, devices))
}

var hostiles = []hostile{
	{"a long device that nothing describes", []string{"-json", "-fields", "-verify"}, func(w *qemufile.Writer) {
		begin(w)
		deviceOf(w, "long", func() { fill(w, 250<<20, make([]byte, 1<<16)) })
		vmstate.PutEOF(w)
	}, false},
	{"a long device that is described", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		deviceOf(w, "long", func() { fill(w, 250<<20, bytes.Repeat([]byte{0x7e, 4}, 1<<15)) })
		describe(w, `{"name": "long", "instance_id": 0, "size": 262144000}`)
	}, false},
	{"many integers", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		deviceOf(w, "ints", func() { fill(w, 20<<20, bytes.Repeat([]byte{1, 2, 3, 4}, 1<<14)) })
		describe(w, `{"name": "ints", "instance_id": 0, "vmsd_name": "ints", "version": 1, "fields": [{"name": "x", "type": "uint32", "size": 4, "array_len": 5242880}]}`)
	}, false},
	{"as many integers as are shown", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		for i := range 10 {
			deviceOf(w, fmt.Sprint("ints", i), func() { fill(w, 2<<20, bytes.Repeat([]byte{0xff, 0xfe, 0xfd, 0xfc}, 1<<14)) })
		}
		var d []string
		for i := range 10 {
			d = append(d, fmt.Sprintf(`{"name": "ints%d", "instance_id": 0, "vmsd_name": "ints", "version": 1, "fields": [{"name": "x", "type": "uint32", "size": 4, "array_len": 500000}, {"name": "y", "type": "buffer", "size": 97152}]}`, i))
		}
		describe(w, strings.Join(d, ", "))
	}, true},
	{"one byte in many structures", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		deviceOf(w, "deep", func() { fill(w, 4<<20, make([]byte, 1<<16)) })
		open, end := "", ""
		for range 16 {
			open += `{"name": "s", "type": "struct", "struct": {"vmsd_name": "s", "version": 1, "fields": [`
			end += `]}, "size": 1}`
		}
		inner := strings.TrimSuffix(end, `"size": 1}`) + `"size": 1, "array_len": 4194304}`
		describe(w, `{"name": "deep", "instance_id": 0, "vmsd_name": "deep", "version": 1, "fields": [`+open+`{"name": "x", "type": "uint8", "size": 1}`+inner+`]}`)
	}, false},
	{"a long description", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		deviceOf(w, "d", func() { w.PutByte(1) })
		field := `{"name":"","size":0},`
		describe(w, `{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [`+strings.Repeat(field, (16<<20-300)/len(field))+`{"name":"x","type":"uint8","size":1}]}`)
	}, true},
	{"a long description with many devices", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		deviceOf(w, "d", func() { w.PutByte(1) })
		dev := `{"name": "d", "instance_id": 0, "size":1},`
		describe(w, strings.Repeat(dev, (16<<20-300)/len(dev))+`{"name": "d", "instance_id": 0, "size":1}`)
	}, true},
	{"a long description that is broken", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		deviceOf(w, "d", func() { w.PutByte(1) })
		dev := `{"name": "d", "instance_id": 0, "size":x},`
		describe(w, strings.Repeat(dev, (16<<20-300)/len(dev))+`{"name": "d", "instance_id": 0, "size":1}`)
	}, true},
	{"many short devices", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		for range 1 << 20 {
			deviceOf(w, "d", func() {})
		}
		vmstate.PutEOF(w)
	}, true},
	{"nothing but footers", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		deviceOf(w, "d", func() { fill(w, 20<<20, bytes.Repeat([]byte{0x7e, 0, 0, 0, 3}, 1<<12)) })
		w.PutByte(9)
	}, true},
	{"headers and footers", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		section := written2(func(w *qemufile.Writer) { deviceOf(w, "dd", func() {}) })
		deviceOf(w, "d", func() { fill(w, 20<<20, bytes.Repeat(section, 1<<12)) })
		w.PutByte(9)
	}, true},
	{"a long package", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		vmstate.PutCommand(w, vmstate.Command{Type: vmstate.CommandPackaged, Payload: binary.BigEndian.AppendUint32(nil, 240<<20)})
		fill(w, 240<<20, make([]byte, 1<<16))
		vmstate.PutEOF(w)
	}, true},
	{"a long checkpoint", []string{"-json", "-fields", "-colo"}, func(w *qemufile.Writer) {
		begin(w)
		vmstate.PutEOF(w)
		w.PutBE32(1)
		w.PutBE32(3)
		vmstate.PutEOF(w)
		w.PutBE32(4)
		w.PutBE64(48 << 20)
		deviceOf(w, "long", func() { fill(w, 48<<20-40, make([]byte, 1<<16)) })
		vmstate.PutEOF(w)
	}, false},
	{"many live devices", []string{"-json"}, func(w *qemufile.Writer) {
		begin(w)
		for i := range uint32(1<<16 - 1) {
			vmstate.Header{Type: vmstate.SectionStart, ID: i, Name: fmt.Sprintf("%0200d", i), Version: 1}.Put(w)
			vmstate.PutFooter(w, i)
		}
		vmstate.PutEOF(w)
	}, true},
	{"pages all over", []string{"-json"}, func(w *qemufile.Writer) {
		begin(w)
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		list := ram.Record{Kind: ram.KindBlockList, Total: 1 << 50, Blocks: []ram.BlockInfo{{Name: "a", Length: 1 << 50}}}
		list.Put(w, ram.Format{})
		for i := range uint64(1 << 20) {
			rec := ram.Record{Kind: ram.KindZero, Block: "a", Continue: i > 0, Offset: i << 28}
			rec.Put(w, ram.Format{})
		}
		w.PutBE64(0x10)
		vmstate.PutFooter(w, 2)
		vmstate.PutEOF(w)
	}, true},
	{"many blocks", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		list := ram.Record{Kind: ram.KindBlockList}
		for i := range 1 << 12 {
			list.Blocks = append(list.Blocks, ram.BlockInfo{Name: fmt.Sprintf("%0250d", i), Length: 4096})
			list.Total += 4096
		}
		list.Put(w, ram.Format{})
		for range 64 {
			for i := range list.Blocks {
				rec := ram.Record{Kind: ram.KindZero, Block: list.Blocks[i].Name}
				rec.Put(w, ram.Format{})
			}
			w.PutBE64(0x10)
			vmstate.PutFooter(w, 2)
			vmstate.Header{Type: vmstate.SectionPart, ID: 2}.Put(w)
		}
		w.PutBE64(0x10)
		vmstate.PutFooter(w, 2)
		vmstate.PutEOF(w)
	}, true},
	{"many lists of blocks", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		for i := range 1 << 10 {
			list := ram.Record{Kind: ram.KindBlockList, Total: 4096}
			for j := range 1 << 10 {
				list.Blocks = append(list.Blocks, ram.BlockInfo{Name: fmt.Sprintf("%0100d", i<<10+j)})
			}
			list.Blocks = append(list.Blocks, ram.BlockInfo{Name: "ram", Length: 4096})
			list.Put(w, ram.Format{})
		}
		w.PutBE64(0x10)
		vmstate.PutFooter(w, 2)
		vmstate.PutEOF(w)
	}, false},
	{"early devices again and again", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		begin(w)
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		for range 1 << 9 {
			w.PutBE64(0x10)
			vmstate.PutFooter(w, 2)
			for range 1 << 11 {
				deviceOf(w, "d", func() {})
			}
			vmstate.Header{Type: vmstate.SectionPart, ID: 2}.Put(w)
		}
		w.PutBE64(0x10)
		vmstate.PutFooter(w, 2)
		vmstate.PutEOF(w)
	}, false},
	{"a large mapped block", []string{"-json"}, func(w *qemufile.Writer) {
		begin(w, "mapped-ram")
		vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}.Put(w)
		at := uint64(8 + 9 + 44 + 16)
		w.PutBE64(1<<40 | 4)
		w.PutCountedString("a")
		w.PutBE64(1 << 40)
		w.PutBE32(1)
		for _, v := range []uint64{4096, at + 200, at + 40<<20} {
			w.PutBE64(v)
		}
		fill(w, 60<<20, bytes.Repeat([]byte{0x11}, 1<<16))
	}, false},
	{"a long domain", []string{"-json", "-fields"}, func(w *qemufile.Writer) {
		w.WriteString(libvirtMagic)
		for i := range 19 {
			v := map[int]uint32{0: 2, 1: maxLibvirt}[i]
			w.Write(binary.LittleEndian.AppendUint32(nil, v))
		}
		fill(w, maxLibvirt, bytes.Repeat([]byte("<"), 1<<16))
		begin(w)
		vmstate.PutEOF(w)
	}, true},
}

func written2(fn func(w *qemufile.Writer)) []byte {
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	fn(w)
	w.Flush()
	return b.Bytes()
}

// Whatever a stream describes, its dump takes a bounded amount of memory.
func TestHostileStreamsAreBounded(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the program and feeds it gigabytes")
	}
	dir := t.TempDir()
	bin := filepath.Join(dir, "streamdump")
	if out, err := exec.Command("go", "build", "-o", bin, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	measure := func(t *testing.T, stdin io.Reader, args ...string) {
		t.Helper()
		var out, stderr tail
		cmd := exec.Command(bin, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &stderr
		err := cmd.Run()
		status := cmd.ProcessState.ExitCode()
		peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10
		if status != 0 && status != 1 {
			t.Fatalf("%v: %s", err, stderr.p)
		}
		if strings.Contains(string(stderr.p), "goroutine ") {
			t.Fatalf("it panics: %s", stderr.p)
		}
		t.Logf("status %d, %d MB of memory, %d MB of output; %.300s", status, peak>>20, out.n>>20, stderr.p)
		if peak > maxResident {
			t.Errorf("it takes %d MB, at most %d", peak>>20, maxResident>>20)
		}
		if out.n > maxResident {
			t.Errorf("it prints %d MB", out.n>>20)
		}
	}
	for _, h := range hostiles {
		t.Run(h.name, func(t *testing.T) {
			if h.slow && !*allHostile {
				t.Skip("it takes seconds: -hostile.all")
			}
			r, w := io.Pipe()
			go func() {
				q := qemufile.NewWriter(w)
				h.write(q)
				w.CloseWithError(q.Flush())
			}()
			measure(t, r, append(h.args, "-")...)
			io.Copy(io.Discard, r)
		})
	}
	t.Run("an explosion", func(t *testing.T) { measure(t, nil, "-json", "-fields", file(t, "nested-8.mig")) })
	t.Run("a long device from a file, compared", func(t *testing.T) {
		name := filepath.Join(dir, "long.mig")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		defer os.Remove(name)
		q := qemufile.NewWriter(f)
		hostiles[1].write(q)
		if err := q.Flush(); err != nil {
			t.Fatal(err)
		}
		f.Close()
		measure(t, nil, "-diff", "-json", name, name)
	})
}

// tail counts what a program prints and keeps the beginning.
type tail struct {
	n int64
	p []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.n += int64(len(p))
	if room := 4096 - len(t.p); room > 0 {
		t.p = append(t.p, p[:min(room, len(p))]...)
	}
	return len(p), nil
}
