package ram_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// What a stream says of its memory before that comes need not be known beforehand: a decoder in
// which there is a Walker reads a stream with any capabilities, and writes it again.
func TestADecoderWithAWalkerReadsStreamsOfAnyFormat(t *testing.T) {
	names, err := filepath.Glob("testdata/qemu-7.2/precopy_*.bin")
	if err != nil || len(names) < 2 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		stream, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(stream)), &keeper{ram.Walker{Detect: true}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var again bytes.Buffer
		w := qemufile.NewWriter(&again)
		if err := errors.Join(doc.Put(w), w.Flush()); err != nil || !bytes.Equal(again.Bytes(), stream) {
			t.Errorf("%s: %d bytes became %d, error %v", name, len(stream), again.Len(), err)
		}
	}
}
