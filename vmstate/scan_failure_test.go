package vmstate

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"github.com/gocolo/lockstep/qemufile"
)

// A stream may end without a description. One whose reader fails there has lost it, or may have.
func TestAReaderThatFailsWhereAStreamMayEndIsAnError(t *testing.T) {
	const name = "precopy_none_1M.bin"
	p := vector(t, name)
	bare := p[:bytes.LastIndex(p, []byte(`{"page_size"`))-5]
	doc, err := ReadDocument(reader(bare), decoder(name))
	if err != nil || doc.VMDesc != nil {
		t.Fatalf("without a description: %v", err)
	}
	broken := errors.New("broken")
	in := io.MultiReader(bytes.NewReader(bare), iotest.ErrReader(broken))
	again, err := ReadDocument(qemufile.NewReader(in), decoder(name))
	if !errors.Is(err, broken) || len(again.Records) != len(doc.Records) {
		t.Errorf("%d of %d records, error %v", len(again.Records), len(doc.Records), err)
	}
}
