package vmstate

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

func TestWhatAStreamSaysOfItselfIsBounded(t *testing.T) {
	config := func(machine, capabilities int) error {
		_, err := ReadConfiguration(reader(written(t, func(w *qemufile.Writer) {
			PutConfiguration(w, Configuration{Machine: strings.Repeat("m", machine), Capabilities: make([]string, capabilities)})
		})))
		return err
	}
	wantNil(t, "the longest machine type, the most capabilities", config(maxMachineName, maxCapabilities))
	wantError(t, "a longer machine type", config(maxMachineName+1, 0), qemufile.ErrTooLong)
	wantError(t, "one capability more", config(0, maxCapabilities+1), ErrBounds)

	// A device's list of fields is at depth 4, and each field's structure has its own list
	// three deeper.
	nested := func(structs int, fields string) error {
		begin, end := `{"name": "f", "size": 1, "struct": {"vmsd_name": "s", "fields": [`, `]}}`
		text := fmt.Sprintf(`{"devices": [{"name": "d", "instance_id": 0, "vmsd_name": "d", "version": 1, "fields": [%s%s%s]}]}`,
			strings.Repeat(begin, structs), fields, strings.Repeat(end, structs))
		_, err := ParseVMDesc([]byte(text))
		return err
	}
	const structs = (maxDescDepth - 4) / 3
	wantNil(t, "the deepest description", nested(structs, ""))
	err := nested(structs, `{"name": "f", "size": 1}`)
	if !errors.Is(err, ErrDescription) || !strings.Contains(err.Error(), "nested deeper") {
		t.Errorf("one level deeper: %v", err)
	}
}

func TestAPackageIsAtMostAsLongAsItMayBe(t *testing.T) {
	load := func(most uint64, hex string) error {
		reg := Registry{MaxPackaged: most}
		return reg.Load(reader(hexBytes(t, hex)), nil)
	}
	wantNil(t, "as long as it may be", load(6, "08 0007 0004 00000006 08 0004 0000 00 00"))
	for _, x := range []struct {
		why  string
		most uint64
		hex  string
		want error
	}{
		{"a byte more than may be", 5, "08 0007 0004 00000006 08 0004 0000 00 00", qemufile.ErrTooLong},
		{"256 MiB, of which nothing comes, where nothing is said", 0, "08 0007 0004 10000000", io.ErrUnexpectedEOF},
		{"a byte more where nothing is said", 0, "08 0007 0004 10000001", qemufile.ErrTooLong},
	} {
		wantError(t, x.why, load(x.most, x.hex), x.want)
	}
}
