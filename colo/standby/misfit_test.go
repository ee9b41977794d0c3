package standby_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/diff"
)

func TestAMappedFileIsNoStream(t *testing.T) {
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "pc", Capabilities: []string{"mapped-ram"}})
	w.Flush()
	g := standby.New(standby.Config{})
	if err := g.Read(qemufile.NewReader(&b)); !errors.Is(err, standby.ErrMapped) {
		t.Error(err)
	}
}

// A guest whose devices do not fit their description, or whose machine is so old
// that its streams lack footers and configuration, is kept all the same, and given
// back as a stream that a destination would load to the same.
func TestGuestsThatTheirDescriptionDoesNotFitAreKept(t *testing.T) {
	dir := filepath.Join("..", "..", "examples", "streamdump", "testdata", "streams")
	for name, devices := range map[string]int{
		"pc-piix4-longer.mig.gz": 30, "pc-description-digit.mig.gz": 30, "pc-description-inner.mig.gz": 30,
		"pc-no-footers.mig.gz": 30, "pc-i440fx-2.3.mig.gz": 28, "none-no-configuration.mig.gz": 2,
	} {
		if testing.Short() && name != "pc-piix4-longer.mig.gz" && name != "none-no-configuration.mig.gz" {
			continue
		}
		p, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		if p, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
		g := standby.New(standby.Config{})
		if err := g.Read(qemufile.NewReader(bytes.NewReader(p))); err != nil {
			t.Errorf("%s: %v", name, err)
			g.Close()
			continue
		}
		in, err := g.Info()
		if err != nil || len(in.Devices) != devices {
			t.Errorf("%s: %d devices, %v", name, len(in.Devices), err)
		}
		var out bytes.Buffer
		if err := g.Put(qemufile.NewWriter(&out)); err != nil {
			t.Errorf("%s: put: %v", name, err)
		}
		a, errA := diff.Read(qemufile.NewReader(bytes.NewReader(p)), diff.Config{})
		b, errB := diff.Read(qemufile.NewReader(&out), diff.Config{})
		if errA != nil || errB != nil {
			t.Fatalf("%s: %v, %v", name, errA, errB)
		}
		if d := diff.Compare(a, b); len(d) > 0 {
			t.Errorf("%s: given back, it is another guest: %v", name, d)
		}
		if a.Footers != b.Footers || (a.Configuration == nil) != (b.Configuration == nil) {
			t.Errorf("%s: given back, it has other footers or another configuration", name)
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}
