package proxy_test

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// oldSection is the section of a NIC as versions 1 and 2 have it.
type oldSection struct{}

func oldEntry(version uint32) vmstate.Entry {
	e := filter.BacklogEntry(0)
	e.Version = version
	return e
}

func (oldSection) VMState(f *vmstate.Fields) {
	new(filter.Backlog).Save(f)
	if f.Version() >= 2 {
		f.Struct("neighbors", "lockstep-net-neighbors", 1, new(proxy.Neighbors).VMState)
		f.Struct("connections", "lockstep-net-edge", 1, new(filter.Edge).VMState)
	}
}

// scalesOf has a secondary load a section of a version, in which the table of scales is the given
// bytes.
func scalesOf(t testing.TB, version, count uint32, table []byte) (*proxy.Secondary, error) {
	t.Helper()
	s := proxy.NewSecondary(proxy.SecondaryConfig{VM: nobody{}, Deliver: func([]byte) error { return nil }})
	var out, in vmstate.Registry
	e := oldEntry(version)
	var b bytes.Buffer
	q := qemufile.NewWriter(&b)
	for _, err := range []error{out.Register(e, rawSection{count, table}), out.SaveDevices(q), in.Register(s.Entry(0), s)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	vmstate.PutEOF(q)
	if err := q.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := in.LoadDevices(b.Bytes(), nil); err != nil {
		return s, err
	}
	return s, in.Commit()
}

type nobody struct{}

func (nobody) Pause(context.Context) error  { return nil }
func (nobody) Resume(context.Context) error { return nil }

type rawSection struct {
	count uint32
	table []byte
}

func (r rawSection) VMState(f *vmstate.Fields) {
	oldSection{}.VMState(f)
	f.Struct("windows", "lockstep-net-windows", 1, func(f *vmstate.Fields) {
		f.Uint32("count", &r.count)
		f.Bytes("scales", r.table)
	})
}

// record returns a record of the table, of a connection of IPv4.
func record(port byte, scale byte) []byte {
	b := make([]byte, compare.ScaleRecord)
	b[0], b[8], b[12], b[28], b[44] = 4, port, 10, 10, scale
	return b
}

func TestATableOfScalesIsCheckedBeforeItIsKept(t *testing.T) {
	two := bytes.Join([][]byte{record(1, 7), record(2, 14)}, nil)
	if _, err := scalesOf(t, 3, 2, two); err != nil {
		t.Fatal(err)
	}
	bad := func(at int, v byte) []byte { b := bytes.Clone(two); b[at] = v; return b }
	for why, table := range map[string][]byte{
		"a kind that there is not":      bad(0, 5),
		"a scale that no window has":    bad(44, 15),
		"a long address of IPv4":        bad(12+4, 1),
		"another that is long":          bad(28+15, 1),
		"in the second: no kind at all": bad(45, 0),
	} {
		_, err := scalesOf(t, 3, 2, table)
		var place *filter.Error
		if !errors.Is(err, compare.ErrScales) || !errors.As(err, &place) || !strings.Contains(err.Error(), "connection") {
			t.Errorf("%s: %v", why, err)
		}
	}
	if _, err := scalesOf(t, 3, compare.MaxScales+1, make([]byte, 1)); !errors.Is(err, vmstate.ErrBounds) {
		t.Errorf("too many: %v", err)
	}
	if _, err := scalesOf(t, 3, 2, two[:80]); err == nil {
		t.Error("it is cut, and was taken")
	}
	if _, err := scalesOf(t, 5, 2, two); err == nil {
		t.Error("a section that is newer was taken")
	}
}

// What is loaded is saved again, each connection once, and all else is refused.
func FuzzScales(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(record(1, 7))
	f.Add(bytes.Join([][]byte{record(1, 7), record(2, 14)}, nil))
	f.Add(bytes.Join([][]byte{record(1, 7), record(1, 9)}, nil))
	f.Fuzz(func(t *testing.T, table []byte) {
		n := uint32(len(table) / compare.ScaleRecord)
		s, err := scalesOf(t, 3, n, table[:n*compare.ScaleRecord])
		if err != nil {
			return
		}
		distinct := map[string]bool{}
		for r := range slices.Chunk(table[:n*compare.ScaleRecord], compare.ScaleRecord) {
			distinct[string(r[:44])] = true
		}
		saved := sectionOf(t, s.Entry(0), s)
		again := proxy.NewSecondary(proxy.SecondaryConfig{VM: nobody{}, Deliver: func([]byte) error { return nil }})
		commitState(t, again, saved)
		if twice := sectionOf(t, again.Entry(0), again); !bytes.Equal(saved, twice) || len(twice) < len(distinct)*compare.ScaleRecord {
			t.Fatalf("saved as\n%x\nand then as\n%x", saved, twice)
		}
	})
}
