package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// zipped packs p as gzip does.
func zipped(t testing.TB, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What is packed ends with its checksum, which a stream that is whole before it says nothing of.
func TestAPackedStreamIsReadToItsChecksum(t *testing.T) {
	stream := vector(t, "precopy_none_1M.bin")
	packed := zipped(t, stream)
	changed := func(at int) []byte {
		p := bytes.Clone(packed)
		p[len(p)+at] ^= 1
		return p
	}
	bare := filepath.Join(t.TempDir(), "stream")
	if err := os.WriteFile(bare, stream, 0o666); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name  string
		input []byte
		err   string
	}{
		{"whole", packed, ""},
		{"in two parts", append(zipped(t, stream[:1000]), zipped(t, stream[1000:])...), ""},
		{"a part with nothing in it", append(bytes.Clone(packed), zipped(t, nil)...), ""},
		{"zeros behind it", append(bytes.Clone(packed), make([]byte, 5000)...), ""},
		{"a wrong checksum", changed(-8), "gzip: invalid checksum"},
		{"a wrong length", changed(-1), "gzip: invalid checksum"},
		{"half of the length is missing", packed[:len(packed)-2], "unexpected EOF"},
		{"something else behind it", append(bytes.Clone(packed), "something else"...), "gzip: invalid header"},
	} {
		t.Run(x.name, func(t *testing.T) {
			status, _, stderr := run(x.input, "-verify")
			if x.err == "" && status != 0 || x.err != "" && (status != 1 || !strings.Contains(stderr, x.err)) {
				t.Errorf("status %d, %s", status, stderr)
			}
			status, _, stderr = run(x.input, "-diff", bare)
			if x.err == "" && status != 0 || x.err != "" && (status != 1 || !strings.Contains(stderr, x.err)) {
				t.Errorf("-diff: status %d, %s", status, stderr)
			}
		})
	}
}

// A disk or a connection that fails where a stream may end has not ended.
func TestAnInputThatFailsBehindTheStreamIsNoWhole(t *testing.T) {
	answers := written(t, func(w *qemufile.Writer) {
		rw := vmstate.ReturnWriter{W: w}
		rw.Pong(1)
	})
	whole := vector(t, "precopy_none_1M.bin")
	for _, x := range []struct {
		name   string
		stream []byte
		args   []string
	}{
		{"with a description", whole, nil},
		{"where the description begins", whole[:bytes.LastIndex(whole, []byte(`{"page_size"`))-5], nil},
		{"of a postcopy", vector(t, "postcopy_none_8M_stream.bin"), nil},
		{"of COLO", colo(t), []string{"-colo"}},
		{"of answers", answers, []string{"-return-path"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			for _, err := range []error{nil, errors.New("the disk is broken")} {
				in := io.Reader(bytes.NewReader(x.stream))
				if err != nil {
					in = io.MultiReader(in, iotest.ErrReader(err))
				}
				var out, errs bytes.Buffer
				status := streamdump(append(x.args, "-"), in, &out, &errs)
				if (status == 0) != (err == nil) || err != nil && !strings.Contains(errs.String(), err.Error()) {
					t.Errorf("it fails with %v: status %d, %s", err, status, &errs)
				}
			}
		})
	}
}

// Of bytes that are no part of the stream, those that were looked at are not counted.
func TestTheSummaryCountsTheStream(t *testing.T) {
	stream := vector(t, "precopy_none_1M.bin")
	path := filepath.Join(t.TempDir(), "twice")
	if err := os.WriteFile(path, append(bytes.Clone(stream), stream...), 0o666); err != nil {
		t.Fatal(err)
	}
	if a := dumpFile(t, "-json", path); a.status != 1 || a.sum.Bytes != int64(len(stream)) {
		t.Errorf("status %d, %d bytes of %d", a.status, a.sum.Bytes, len(stream))
	}
}

func TestADirectoryIsNoInput(t *testing.T) {
	dir := t.TempDir()
	for _, args := range [][]string{{dir}, {"-describe", dir, "-"}, {"-channel", dir, "-"}, {"-diff", "-", dir}} {
		var out, errs bytes.Buffer
		status := streamdump(args, bytes.NewReader(vector(t, "precopy_none_1M.bin")), &out, &errs)
		if text := errs.String(); status != 1 || !strings.Contains(text, dir+" is a directory") || strings.Count(text, "\n") != 1 {
			t.Errorf("%q: status %d, %s", args, status, text)
		}
	}
}
