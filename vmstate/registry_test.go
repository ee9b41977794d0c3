package vmstate

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// What a Registry writes and reads, with devices that record how they were called: whole
// migrations byte by byte first, then what is refused, and then single rules.

// counter is a device with one value and all the hooks.
type counter struct {
	N       uint32
	pre     int
	posted  []uint32
	log     *[]string
	preErr  error
	postErr error
	absent  bool
}

func (c *counter) VMState(f *Fields) { f.Uint32("n", &c.N) }
func (c *counter) PreSave() error    { c.pre++; return c.preErr }
func (c *counter) Needed() bool      { return !c.absent }
func (c *counter) PostLoad(v uint32) error {
	c.posted = append(c.posted, c.N)
	if c.log != nil {
		*c.log = append(*c.log, "post "+strings.Repeat("I", int(c.N)))
	}
	return c.postErr
}

func TestAMigrationByteByByte(t *testing.T) {
	ram := &live{setup: 1, part: 2, end: 3, done: true}
	a, b := &counter{N: 10}, &counter{N: 11}
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "a", Version: 1}, a))
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "ram", Version: 4}, ram, ram))
	wantNil(t, "register", reg.Register(Entry{Name: "first", Instance: 1, Version: 2, Priority: 5}, b))
	stream := written(t, func(w *qemufile.Writer) {
		PutFileHeader(w)
		PutConfiguration(w, Configuration{Machine: "none"})
		PutCommand(w, EnableCOLO())
		w.Fail(reg.SaveSetup(w))
		done, err := reg.SaveIterate(w)
		if w.Fail(err); !done {
			t.Error("the only saver is done")
		}
		w.Fail(reg.SaveComplete(w))
		w.Fail(reg.SaveDevices(w))
		PutEOF(w)
		reg.PutVMDesc(w)
	})
	want := hexBytes(t, `
		"QEVM" 00000003
		07 00000004 "none"
		08 0008 0000
		01 00000001 03 "ram" 00000000 00000004 01 7e 00000001
		02 00000001 02 7e 00000001
		03 00000001 03 7e 00000001
		04 00000002 05 "first" 00000001 00000002 0000000b 7e 00000002
		04 00000000 01 "a" 00000000 00000001 0000000a 7e 00000000
		00
		06`)
	desc := `{"page_size": 4096, "devices": [` +
		`{"name": "first", "instance_id": 1, "vmsd_name": "first", "version": 2, "fields": [{"name": "n", "type": "uint32", "size": 4}]}, ` +
		`{"name": "a", "instance_id": 0, "vmsd_name": "a", "version": 1, "fields": [{"name": "n", "type": "uint32", "size": 4}]}]}`
	want = append(append(want, be32(uint32(len(desc)))...), desc...)
	if !bytes.Equal(stream, want) {
		t.Fatalf("got  %q\nwant %q", stream, want)
	}

	r := reader(stream)
	wantNil(t, "header", ReadFileHeader(r))
	c, err := ReadConfiguration(r)
	if err != nil || c.Machine != "none" {
		t.Fatalf("configuration %+v, %v", c, err)
	}
	a.N, b.N = 0, 0
	var log []string
	a.log, b.log = &log, &log
	a.posted, b.posted = nil, nil
	var commands []string
	wantNil(t, "load", reg.Load(r, func(c Command) error {
		commands = append(commands, c.String())
		return nil
	}))
	text, err := ReadVMDesc(r, 0)
	if err != nil || string(text) != desc {
		t.Errorf("description %q, %v", text, err)
	}
	if a.N != 10 || b.N != 11 || string(ram.got) != "\x01\x02\x03" || ram.version != 4 || !slices.Equal(commands, []string{"enable-colo"}) {
		t.Errorf("loaded %d %d %x %v", a.N, b.N, ram.got, commands)
	}
	if len(log) != 0 {
		t.Errorf("applied before the commit: %v", log)
	}
	wantNil(t, "commit", reg.Commit())
	if want := []string{"post IIIIIIIIIII", "post IIIIIIIIII"}; !slices.Equal(log, want) {
		t.Errorf("applied %v, want %v", log, want)
	}
	if reg.Commit(); len(log) != 2 {
		t.Error("a second commit applies again")
	}
}

func TestACheckpointUsesTheIDsOfTheSession(t *testing.T) {
	ram := &live{setup: 1, end: 3}
	var reg Registry
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "ram", Version: 4}, ram, ram))
	end := hexBytes(t, "03 00000063 07 7e 00000063 00")
	wantError(t, "an id nobody has introduced", reg.Load(reader(end), nil), ErrUnknownSection)
	wantError(t, "no id 0 by default", reg.Load(reader(hexBytes(t, "02 00000000 07 7e 00000000 00")), nil), ErrUnknownSection)
	wantNil(t, "start", reg.Load(reader(hexBytes(t, `01 00000063 03 "ram" 00000000 00000004 01 7e 00000063 00`)), nil))
	for range 3 {
		wantNil(t, "checkpoint", reg.Load(reader(end), nil))
	}
	wantNil(t, "nothing but EOF", reg.Load(reader([]byte{0}), nil))
	reg.NewSession()
	wantError(t, "another session", reg.Load(reader(end), nil), ErrUnknownSection)
}

func TestLoadRefuses(t *testing.T) {
	const ok = `04 00000001 01 "a" 00000000 00000002 00000009 7e 00000001 `
	for why, x := range map[string]struct {
		stream string
		want   error
	}{
		"an unknown device":             {`04 00000001 01 "x" 00000000 00000002`, ErrUnknownSection},
		"an unknown instance":           {`04 00000001 01 "a" 00000001 00000002`, ErrUnknownSection},
		"a name of no length":           {`04 00000001 00 00000001 00000002`, ErrUnknownSection},
		"a version that is too new":     {`04 00000001 01 "a" 00000000 00000003`, ErrVersion},
		"a version that is too old":     {`04 00000001 01 "a" 00000000 00000000`, ErrVersion},
		"a missing footer":              {`04 00000001 01 "a" 00000000 00000002 00000009 00`, ErrFooter},
		"a footer with another id":      {`04 00000001 01 "a" 00000000 00000002 00000009 7e 00000002`, ErrFooter},
		"a part of a device":            {`02 00000001`, ErrUnknownSection},
		"a device's id for another":     {`04 00000001 01 "b" 00000000 00000000`, ErrSectionID},
		"a subsection as a section":     {`05`, ErrSectionType},
		"a description in the sections": {`06`, ErrSectionType},
		"a configuration later on":      {`07`, ErrSectionType},
		"a footer alone":                {`7e`, ErrSectionType},
		"a section type nobody knows":   {`09`, ErrSectionType},
		"command 0":                     {`08 0000 0000`, ErrCommand},
		"command 12":                    {`08 000c 0000`, ErrCommand},
		"a command with a bad length":   {`08 0008 0001 00`, ErrCommand},
		"no EOF":                        {``, io.ErrUnexpectedEOF},
	} {
		a, b := &counter{N: 5}, &counter{N: 6}
		var reg Registry
		wantNil(t, "register", reg.Register(Entry{Name: "a", Version: 2, MinVersion: 1}, a))
		wantNil(t, "register", reg.Register(Entry{Name: "b"}, b))
		stream := hexBytes(t, ok+x.stream)
		err := reg.Load(reader(stream), nil)
		wantError(t, why, err, x.want)
		var se *SectionError
		if !errors.As(err, &se) || se.Offset != 24 {
			t.Errorf("%s: not at offset 24: %#v", why, se)
		}
		if a.N != 5 || b.N != 6 {
			t.Errorf("%s: devices are %d and %d, want them as they were", why, a.N, b.N)
		}
		wantNil(t, "commit of nothing", reg.Commit())
		if len(a.posted) != 0 {
			t.Errorf("%s: a device of a failed load was applied", why)
		}
	}
}

func TestADeviceStateEndsAtItsEOF(t *testing.T) {
	a := &counter{N: 5}
	reg := registry(t, Entry{Name: "a"}, a)
	state := saved(t, reg)
	a.N = 7
	wantNil(t, "load", reg.LoadDevices(state, nil))
	if a.N != 5 {
		t.Errorf("n is %d", a.N)
	}
	reg.Rollback()
	err := reg.LoadDevices(append(bytes.Clone(state), 0, 0), nil)
	wantError(t, "more after EOF", err, ErrTrailing)
	wantError(t, "no EOF", reg.LoadDevices(state[:len(state)-1], nil), io.ErrUnexpectedEOF)
	wantError(t, "nothing", reg.LoadDevices(nil, nil), io.ErrUnexpectedEOF)
	wantError(t, "a file header", reg.LoadDevices([]byte("QEVM"), nil), ErrSectionType)
	if a.N != 7 {
		t.Errorf("n is %d after failed loads", a.N)
	}
}

func TestSeveralLoadsBeforeACommit(t *testing.T) {
	a, b := &counter{N: 1}, &counter{N: 1}
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "a"}, a))
	wantNil(t, "register", reg.Register(Entry{Name: "b"}, b))
	stateA := hexBytes(t, `04 00000000 01 "a" 00000000 00000000 00000009 7e 00000000 00`)
	stateB := hexBytes(t, `04 00000001 01 "b" 00000000 00000000 00000009 7e 00000001 00`)
	wantNil(t, "first", reg.LoadDevices(stateA, nil))
	wantNil(t, "second", reg.LoadDevices(stateB, nil))
	wantNil(t, "first again", reg.LoadDevices(stateA, nil))
	wantError(t, "third", reg.LoadDevices(stateB[:9], nil), io.ErrUnexpectedEOF)
	if a.N != 1 || b.N != 1 {
		t.Errorf("a failed load must undo those before it: %d %d", a.N, b.N)
	}
	wantNil(t, "first", reg.LoadDevices(stateA, nil))
	wantNil(t, "first again", reg.LoadDevices(stateA, nil))
	wantNil(t, "commit", reg.Commit())
	if len(a.posted) != 1 {
		t.Errorf("a device that came twice was applied %d times", len(a.posted))
	}
	reg.Rollback()
	if a.N != 9 {
		t.Errorf("a commit can be rolled back: %d", a.N)
	}
}

func TestAFailedCommitSaysWhere(t *testing.T) {
	boom := errors.New("boom")
	a := &counter{N: 1, postErr: boom}
	reg := registry(t, Entry{Name: "a"}, a)
	state := saved(t, reg)
	a.N = 2
	wantNil(t, "load", reg.LoadDevices(state, nil))
	err := reg.Commit()
	var se *SectionError
	if !errors.Is(err, boom) || !errors.As(err, &se) || se.Section.Name != "a" {
		t.Errorf("commit: %v", err)
	}
	if reg.Rollback(); a.N != 2 {
		t.Errorf("rollback after a failed commit left %d", a.N)
	}
}

func TestRegisterRefuses(t *testing.T) {
	var reg Registry
	d := &counter{}
	wantNil(t, "register", reg.Register(Entry{Name: "a", Aliases: []Alias{{"old", 3}}}, d))
	wantError(t, "the same again", reg.Register(Entry{Name: "a"}, d), ErrDuplicate)
	wantError(t, "an alias", reg.Register(Entry{Name: "old", Instance: 3}, d), ErrDuplicate)
	wantError(t, "a minimum above the version", reg.Register(Entry{Name: "v", MinVersion: 1}, d), ErrVersion)
	wantNil(t, "another instance", reg.Register(Entry{Name: "a", Instance: 1}, d))
	for why, err := range map[string]error{
		"no name":    reg.Register(Entry{}, d),
		"long name":  reg.Register(Entry{Name: strings.Repeat("x", 256)}, d),
		"no device":  reg.Register(Entry{Name: "n"}, nil),
		"no saver":   reg.RegisterLive(Entry{Name: "n"}, nil, nil),
		"nil device": reg.Register(Entry{Name: "n"}, nil),
	} {
		if err == nil {
			t.Errorf("%s is accepted", why)
		}
	}
}

func TestAnAliasLoadsAndIsNotSaved(t *testing.T) {
	d := &counter{N: 1}
	reg := registry(t, Entry{Name: "new", Aliases: []Alias{{"old", 3}}}, d)
	wantNil(t, "load", reg.Load(reader(hexBytes(t, `04 00000000 03 "old" 00000003 00000000 00000009 7e 00000000 00`)), nil))
	if d.N != 9 {
		t.Errorf("n is %d", d.N)
	}
	if s := saved(t, reg); !bytes.Contains(s, []byte("new")) {
		t.Errorf("saved %q", s)
	}
}

func TestUnmigratableDevicesAreListed(t *testing.T) {
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "a"}, &counter{}))
	wantNil(t, "nothing blocks", reg.Blocked())
	wantNil(t, "register", reg.Register(Entry{Name: "b", Unmigratable: "has a host device"}, &counter{}))
	wantNil(t, "register", reg.Register(Entry{Name: "c", Unmigratable: "is new"}, &counter{}))
	wantError(t, "blocked", reg.Blocked(), ErrUnmigratable)
	if err := reg.Blocked(); !strings.Contains(err.Error(), "b: has a host device") {
		t.Errorf("%v", err)
	}
	if got, want := reg.NonMigratable(), []string{"non-migratable device: c", "non-migratable device: b"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestADeviceThatIsNotNeededHasNoSection(t *testing.T) {
	d := &counter{absent: true}
	reg := registry(t, Entry{Name: "a"}, d)
	if s := saved(t, reg); len(s) != 1 || d.pre != 0 {
		t.Errorf("saved %x", s)
	}
	if text, err := reg.VMDesc(); err != nil || string(text) != `{"page_size": 4096, "devices": []}` {
		t.Errorf("described %s, %v", text, err)
	}
}

func TestPreSaveMayRefuse(t *testing.T) {
	d := &counter{preErr: errors.New("boom")}
	reg := registry(t, Entry{Name: "a"}, d)
	wantError(t, "save", reg.SaveDevices(qemufile.NewWriter(io.Discard)), d.preErr)
}

func TestFootersMayBeAbsent(t *testing.T) {
	d := &counter{N: 5}
	reg := registry(t, Entry{Name: "a"}, d)
	reg.NoFooters = true
	stream := saved(t, reg)
	if want := hexBytes(t, `04 00000000 01 "a" 00000000 00000000 00000005 00`); !bytes.Equal(stream, want) {
		t.Errorf("saved %x", stream)
	}
	d.N = 0
	wantNil(t, "load", reg.Load(reader(stream), nil))
	reg.NoFooters = false
	wantError(t, "to one who wants footers", reg.Load(reader(stream), nil), ErrFooter)
}

func TestCommandsMayEndALoad(t *testing.T) {
	boom := errors.New("boom")
	reg := registry(t, Entry{Name: "a"}, &counter{})
	err := reg.Load(reader(hexBytes(t, "08 0008 0000 00")), func(Command) error { return boom })
	wantError(t, "refused", err, boom)
	wantNil(t, "ignored", reg.Load(reader(hexBytes(t, "08 0008 0000 00")), nil))
}

func TestARegistryTellsWhatIsRegistered(t *testing.T) {
	var reg Registry
	want := []Entry{
		{Name: "b", VMSD: "b", Version: 2, MinVersion: 1, Aliases: []Alias{{"old", 0}}},
		{Name: "a", VMSD: "a", Instance: 3, Priority: 7},
	}
	for _, e := range want {
		if err := reg.Register(e, &counter{}); err != nil {
			t.Fatal(err)
		}
	}
	got := reg.Entries()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	got[0].Aliases[0].Name = "mine"
	if reg.Entries()[0].Aliases[0].Name != "old" {
		t.Error("what is returned is the registry's own")
	}
}

// A peer may give a device another id. The old one is then nobody's: another device may have it.
func TestAnIDThatADeviceHadIsFree(t *testing.T) {
	a, b := &counter{}, &counter{}
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "a"}, a))
	wantNil(t, "register", reg.Register(Entry{Name: "b"}, b))
	wantNil(t, "load", reg.Load(reader(hexBytes(t, `
		04 00000005 01 "a" 00000000 00000000 00000001 7e 00000005
		04 00000006 01 "a" 00000000 00000000 00000002 7e 00000006
		04 00000005 01 "b" 00000000 00000000 00000003 7e 00000005
		00`)), nil))
	wantNil(t, "commit", reg.Commit())
	if a.N != 2 || b.N != 3 {
		t.Errorf("%d and %d", a.N, b.N)
	}
}
