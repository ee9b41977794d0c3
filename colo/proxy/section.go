package proxy

import (
	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/vmstate"
)

// The section of a NIC begins as the section of a filter.Buffer. From version 2 on it is
// followed by the guest's addresses, which the side that goes on announces, and by the
// connections that are translated, which it has to go on translating; from version 3 on by the
// scales of the guest's windows, which that side's comparison has to know once its guest is
// protected again. From version 4 on the connections have those whose handshake is not complete.

// sectionVersion is the version that is saved. A section of an earlier version loads too.
const sectionVersion = 4

func entry(instance uint32) vmstate.Entry {
	e := filter.BacklogEntry(instance)
	e.Version = sectionVersion
	return e
}

// preSave comes after the packets were gathered. A packet that opens a connection anew and
// leaves at this moment is then among these packets, or has changed edge.
func preSave(known *Neighbors, edge *filter.Edge) error {
	if err := known.PreSave(); err != nil {
		return err
	}
	return edge.PreSave()
}

// stand saves or loads the part of the section after the packets.
func stand(f *vmstate.Fields, known *Neighbors, edge *filter.Edge, scales *scaleImage) {
	if f.Loading() && f.Version() < 2 {
		return
	}
	f.Struct("neighbors", known.Entry(0).Name, known.Entry(0).Version, known.VMState)
	connections := edge.Entry(0).Version
	if f.Loading() && f.Version() < 4 {
		connections = 1
	}
	f.Struct("connections", edge.Entry(0).Name, connections, edge.VMState)
	if f.Loading() && f.Version() < 3 {
		return
	}
	f.Struct("windows", "lockstep-net-windows", 1, scales.VMState)
}

// scaleImage has the scales of the guest's windows as a section has them: the records of a
// compare.Scales.
type scaleImage struct {
	count  uint32
	data   []byte
	loaded *compare.Scales // what data has, where it was loaded; nil: it never was
}

// gather makes what add appends that which is saved.
func (m *scaleImage) gather(add func([]byte) []byte) {
	m.data = add(m.data[:0])
	m.count = uint32(len(m.data) / compare.ScaleRecord)
}

// VMState names the records. What is loaded is checked and touches nothing else. (A
// vmstate.Device.)
func (m *scaleImage) VMState(f *vmstate.Fields) {
	f.Uint32("count", &m.count)
	f.Bytes("scales", vmstate.Resize(f, &m.data, uint64(m.count)*compare.ScaleRecord, compare.MaxScales*compare.ScaleRecord))
	if f.Loading() && f.Err() == nil {
		if m.loaded == nil {
			m.loaded = new(compare.Scales)
		}
		if err := m.loaded.Load(m.data); err != nil {
			f.Fail(&filter.Error{Op: "load", Offset: -1, Err: err})
		}
	}
}

// take returns what a section of version has loaded, which becomes what is known, in place of
// what was known before, whose memory serves the next section. Where the section has none,
// nothing is known.
func (m *scaleImage) take(version uint32, before *compare.Scales) *compare.Scales {
	if version < 3 {
		before.Reset()
		return before
	}
	s := m.loaded
	m.loaded = before
	return s
}

// postLoad puts into force what stand has loaded.
func postLoad(version uint32, known *Neighbors, edge *filter.Edge) error {
	if version < 2 {
		return nil
	}
	if err := known.PostLoad(known.Entry(0).Version); err != nil {
		return err
	}
	return edge.PostLoad(edge.Entry(0).Version)
}
