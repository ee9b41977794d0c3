package proxy

import (
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/vmstate"
)

// The section of a NIC is that of a filter.Buffer. From version 2 on it is followed by the
// guest's addresses, which the side that goes on announces, and by the connections that
// are translated, which it has to go on translating.

// sectionVersion is the version that is saved. A section of version 1 loads too.
const sectionVersion = 2

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
func stand(f *vmstate.Fields, known *Neighbors, edge *filter.Edge) {
	if f.Loading() && f.Version() < 2 {
		return
	}
	f.Struct("neighbors", known.Entry(0).Name, known.Entry(0).Version, known.VMState)
	f.Struct("connections", edge.Entry(0).Name, edge.Entry(0).Version, edge.VMState)
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
