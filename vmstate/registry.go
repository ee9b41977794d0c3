package vmstate

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
)

// A Device is state that fits into one section. VMState names every field, in
// wire order; see [Fields] for what it may do. It is called on the goroutine
// that uses the Registry, with the guest paused when saving.
//
// For a session (package colo) these hold too; colotest.TestVM checks what says
// "must". Saving a guest that stands still must always succeed, and give the same
// bytes again but for clocks. What was saved must be taken back by a load, after
// which the device must save the same. A load must be refused, by VMState or by
// PostLoad, while the guest runs. VMState must change nothing but the fields that
// it is given, so that a load that is rolled back leaves no trace.
type Device interface {
	VMState(*Fields)
}

// A PreSaver is a Device that gathers its state (from the hypervisor, say)
// before it is saved. The guest is paused. It is not called for a description.
type PreSaver interface {
	PreSave() error
}

// A PostLoader is a Device that applies its decoded state, to the hypervisor or
// to what is derived from the fields. [Registry.Commit] calls it, in stream
// order, when nothing of the load can be refused any more. version is the
// section's.
type PostLoader interface {
	PostLoad(version uint32) error
}

// A Needer is a Device or LiveSaver that may have nothing to save: if Needed
// says no, there is no section at all, and the receiver keeps what it has.
type Needer interface {
	Needed() bool
}

// An Alias is another name under which a stream may bring a device, such as an
// older or a shorter one. It is never written.
type Alias struct {
	Name     string
	Instance uint32
}

// An Entry has the name and the versions under which a device is in the stream.
type Entry struct {
	// Name identifies the device together with Instance; 1 to 255 bytes. In
	// QEMU: the device's path, a slash, and the name of its description; or the
	// latter alone.
	Name     string
	Instance uint32
	// VMSD is the name of the device's description, which begins the name of
	// each of its subsections. Empty: Name.
	VMSD string
	// Version is written; versions from MinVersion to Version are read.
	Version, MinVersion uint32
	// Priority orders devices when saving: greater first, then as registered
	// (MigrationPriority in include/migration/vmstate.h).
	Priority int
	// Aliases are further names to load from.
	Aliases []Alias
	// Unmigratable says why the device cannot be saved; empty: it can.
	Unmigratable string
	// Early devices are saved by SaveSetup, before the live ones, because a
	// receiver must have their fields first (early_setup of a VMStateDescription,
	// QEMU 8.0 and later). It means nothing to a live device.
	Early bool
}

type entry struct {
	Entry
	id     uint32 // of sections that this side saves
	device Device // nil if live
	saver  LiveSaver
	loader LiveLoader

	known       bool   // the peer has introduced the device
	peerID      uint32 // the section id under which the peer sends it
	peerVersion uint32 // the version with which the peer has introduced it
	loads       int    // how often it was loaded since the last Commit or Rollback

	saved    bool  // whether the last SaveDevices, or the SaveSetup before it, has saved it
	early    bool  // whether SaveSetup has saved it
	savedLen int64 // the length of the body that was saved then
}

// header returns the header with which this side saves the device.
func (e *entry) header(t SectionType) Header {
	return Header{Type: t, ID: e.id, Name: e.Name, Instance: e.Instance, Version: e.Version}
}

func (e *entry) live() bool { return e.device == nil }

// A Registry is the devices of one guest, in both of its roles: it saves them
// and it loads them. The zero value is ready.
//
// It remembers which section ids a peer has introduced, because a checkpoint
// refers to live devices by the id of the initial migration;
// [Registry.NewSession] ends that memory.
//
// A Registry is used by one goroutine at a time.
type Registry struct {
	// NoFooters says that sections have no footer (the machine property
	// send-section-footer=off). The stream does not tell.
	NoFooters bool
	// MaxPackaged bounds the nested stream of a PACKAGED command, in bytes, as
	// it is held in memory. 0: 256 MiB.
	MaxPackaged uint64
	// SwitchoverAcked is for the source of a migration with the capability
	// switchover-ack: until it returns true, Capture and SaveComplete fail with
	// [ErrSwitchover] and write nothing, since the guest may not be stopped yet.
	// In general it is [ReturnReader.SwitchoverAcked]. Nil: nobody has to agree.
	SwitchoverAcked func() bool

	entries []*entry // in the order of their registration
	order   []*entry // in the order in which they are saved
	names   map[Alias]*entry
	peers   map[uint32]*entry // by the peer's section id
	nextID  uint32

	capturedDevices capturedDevices

	setUp  bool // SaveSetup was the last to save devices
	behind bool // memory follows the guest: from SaveCompleteInPostcopy to SaveCompletePostcopy, SaveSetup or NewSession
	fields Fields
	undo   undoLog
	staged []staged
	after  []func() error  // functions that OnCommit has registered for the device that is being loaded
	nested int             // how many PACKAGED commands the present stream is inside
	memory qemufile.Reader // reads a device state in memory
}

// staged is a device that waits for Commit.
type staged struct {
	entry   *entry
	header  Header
	offset  int64
	version uint32
	after   []func() error // functions that OnCommit has registered
}

// Register adds a device that is saved as one FULL section. Its error is
// [ErrDuplicate] if the name and instance, or an alias, are taken.
func (reg *Registry) Register(e Entry, d Device) error {
	if d == nil {
		return fmt.Errorf("vmstate: register %s/%d: no device", e.Name, e.Instance)
	}
	return reg.register(&entry{Entry: e, device: d})
}

// RegisterLive adds a device that is saved while the guest runs, as START, PART
// and END sections. The saver or the loader may be nil if the guest never has
// that role.
func (reg *Registry) RegisterLive(e Entry, s LiveSaver, l LiveLoader) error {
	if s == nil && l == nil {
		return fmt.Errorf("vmstate: register %s/%d: neither saver nor loader", e.Name, e.Instance)
	}
	return reg.register(&entry{Entry: e, saver: s, loader: l})
}

func (reg *Registry) register(e *entry) error {
	if e.Name == "" || len(e.Name) > 255 {
		return fmt.Errorf("vmstate: register: a name of %d bytes, want 1 to 255", len(e.Name))
	}
	if e.MinVersion > e.Version {
		return fmt.Errorf("vmstate: register %s/%d: %w: minimum %d above %d", e.Name, e.Instance, ErrVersion, e.MinVersion, e.Version)
	}
	if e.VMSD == "" {
		e.VMSD = e.Name
	}
	keys := append([]Alias{{e.Name, e.Instance}}, e.Aliases...)
	for _, k := range keys {
		if reg.names[k] != nil {
			return fmt.Errorf("vmstate: register %s/%d: %w", k.Name, k.Instance, ErrDuplicate)
		}
	}
	if reg.names == nil {
		reg.names = make(map[Alias]*entry)
		reg.peers = make(map[uint32]*entry)
	}
	for _, k := range keys {
		reg.names[k] = e
	}
	// Ids count up from 0, but a live section's is never 0: that is also the
	// id under which a QEMU keeps devices that it has not met yet, and it would
	// give the parts of the section to one of those (loadvm_section_part_end of
	// migration/savevm.c).
	if e.live() && reg.nextID == 0 {
		reg.nextID = 1
	}
	e.id = reg.nextID
	reg.nextID++
	reg.entries = append(reg.entries, e)
	reg.order = append(reg.order, e)
	slices.SortStableFunc(reg.order, func(a, b *entry) int { return cmp.Compare(b.Priority, a.Priority) })
	return nil
}

// NewSession forgets the section ids the peer has introduced and undoes what is
// staged. A live saver or loader with a method NewSession() is told too. It is
// called where a new connection begins.
func (reg *Registry) NewSession() {
	reg.Rollback()
	clear(reg.peers)
	reg.setUp, reg.behind = false, false
	for _, e := range reg.entries {
		e.known, e.saved, e.early = false, false, false
		if s, ok := e.saver.(interface{ NewSession() }); ok {
			s.NewSession()
		}
		if l, ok := e.loader.(interface{ NewSession() }); ok {
			l.NewSession()
		}
	}
}

// Blocked returns an error that wraps [ErrUnmigratable] and names the first
// device registered that cannot be migrated, or nil. It is asked before saving
// and before loading.
func (reg *Registry) Blocked() error {
	for _, e := range reg.entries {
		if e.Unmigratable != "" {
			return fmt.Errorf("vmstate: %w %s: %s", ErrUnmigratable, e.Name, e.Unmigratable)
		}
	}
	return nil
}

// Entries returns the entries of all devices, in the order of their registration. The
// caller may keep and change the slice.
func (reg *Registry) Entries() []Entry {
	all := make([]Entry, len(reg.entries))
	for i, e := range reg.entries {
		all[i] = e.Entry
		all[i].Aliases = slices.Clone(e.Aliases)
	}
	return all
}

// NonMigratable lists every device that blocks migration, the last registered
// first, in the words of query-migrate's blocked-reasons.
func (reg *Registry) NonMigratable() []string {
	var list []string
	for _, e := range slices.Backward(reg.entries) {
		if e.Unmigratable != "" {
			list = append(list, "non-migratable device: "+e.Name)
		}
	}
	return list
}
