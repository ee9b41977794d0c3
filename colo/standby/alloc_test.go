package standby_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// liveSection returns a checkpoint's memory: n pages of the vectors' machine.
func liveSection(n int, kind byte, data []byte) []byte {
	var records [][]byte
	for i := range n {
		head := uint64(i)*ram.PageSize | uint64(kind)
		if i == 0 {
			records = append(records, named(head, "ram", data...))
		} else {
			records = append(records, page(head|0x20, data...))
		}
	}
	return slices.Concat([]byte{3}, be(noneRAM), slices.Concat(records...), be64(0x10), []byte{0x7e}, be(noneRAM), []byte{0})
}

const noneRAM = 2 // the id of memory in the vectors

func TestPagesAreTakenWithoutAllocation(t *testing.T) {
	g := standby.New(standby.Config{})
	defer g.Close()
	if err := g.Read(qemufile.NewReader(bytes.NewReader(vector(t, "none-initial.bin")))); err != nil {
		t.Fatal(err)
	}
	blob := vector(t, "none-checkpoint.bin")[4+5+8+5+1+12:]
	r := new(qemufile.Reader)
	checkpoint := func(live []byte) func() {
		return func() {
			r.ResetBytes(live)
			for _, err := range []error{g.Load(r, refuse), g.LoadDevices(blob, refuse), g.Flush(), g.Commit(), g.Settle()} {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, c := range []struct {
		name string
		kind byte
		data []byte
	}{{"page", 0x08, filled(7)}, {"zero", 0x02, []byte{0}}, {"difference", 0x40, []byte{1, 0, 3, 2, 1, 99}}} {
		few, many := checkpoint(liveSection(2, c.kind, c.data)), checkpoint(liveSection(200, c.kind, c.data))
		many()           // staging memory is taken
		const runs = 200 // what else the process allocates meanwhile counts too
		if a, b := testing.AllocsPerRun(runs, few), testing.AllocsPerRun(runs, many); a != b {
			t.Errorf("%s: %v allocations for 2 pages, %v for 200", c.name, a, b)
		}
	}
}

func refuse(vmstate.Command) error { return vmstate.ErrCommand }

// BenchmarkLoad takes in checkpoints of the whole guest from memory, beside a
// copy of as many bytes.
func BenchmarkLoad(b *testing.B) {
	g := standby.New(standby.Config{})
	defer g.Close()
	if err := g.Read(qemufile.NewReader(bytes.NewReader(vector(b, "none-initial.bin")))); err != nil {
		b.Fatal(err)
	}
	live := liveSection(256, 0x08, filled(7))
	blob := vector(b, "none-checkpoint.bin")[4+5+8+5+1+12:]
	r := new(qemufile.Reader)
	dst := make([]byte, len(live))
	b.SetBytes(int64(len(live)))
	b.ReportAllocs()
	for b.Loop() {
		r.ResetBytes(live)
		for _, err := range []error{g.Load(r, refuse), g.LoadDevices(blob, refuse), g.Flush(), g.Commit(), g.Settle()} {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
	per := float64(b.Elapsed()) / float64(b.N)
	began := time.Now()
	for range b.N {
		for at := 0; at < len(live); at += ram.PageSize {
			copy(dst[at:], live[at:min(at+ram.PageSize, len(live))])
		}
	}
	b.ReportMetric(per/(float64(time.Since(began))/float64(b.N)), "copies")
}
