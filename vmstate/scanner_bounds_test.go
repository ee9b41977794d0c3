package vmstate

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// What a stream makes a Scanner do is bounded by what it has.

// A record of a few bytes takes much memory: a stream may not have any number of them among its
// devices.
func TestCommandsAmongDevicesAreBounded(t *testing.T) {
	scan := func(commands int) (records int, err error) {
		stream := written(t, func(w *qemufile.Writer) {
			PutFileHeader(w)
			PutConfiguration(w, Configuration{Machine: "none"})
			Header{Type: SectionFull, ID: 1, Name: "dev-a", Version: 1}.Put(w)
			w.PutByte(0xa0)
			PutFooter(w, 1)
			for range commands {
				PutCommand(w, Command{Type: CommandOpenReturnPath})
			}
			PutEOF(w)
			PutDescription(w, []byte(`{"devices": [{"name": "dev-a", "instance_id": 0, "vmsd_name": "a", "version": 1, "fields": [{"name": "f", "type": "uint8", "size": 1}]}]}`))
		})
		s := Scanner{Record: func(*Record) error { records++; return nil }}
		err = s.Stream(qemufile.NewReader(bytes.NewReader(stream)))
		return records, err
	}
	if n, err := scan(1000); err != nil || n != 1000+5 {
		t.Errorf("1000 commands: %d records, %v", n, err)
	}
	if n, err := scan(maxSections + 10); err == nil || n > maxSections {
		t.Errorf("more than %d commands: %d records, %v", maxSections, n, err)
	}
}

// tailOf returns a search that has read a section of dev-a, EOF and a description.
func tailOf(text string) (t *tailScan, at int) {
	var state bytes.Buffer
	w := qemufile.NewWriter(&state)
	Header{Type: SectionFull, ID: 1, Name: "dev-a", Version: 1}.Put(w)
	w.PutByte(0xa0)
	PutFooter(w, 1)
	PutEOF(w)
	w.Flush()
	at = state.Len()
	PutDescription(w, []byte(text))
	w.Flush()
	s := &Scanner{Record: func(*Record) error { return nil }, NoFooters: false, footed: true}
	r := new(qemufile.Reader)
	r.ResetBytes(nil)
	return &tailScan{s: s, r: r, state: state.Bytes(), had: state.Len(), tries: maxTailTries, work: maxTailWork}, at
}

// Descriptions that fit the first devices, and no more, cost as many records as they fit. All of
// them together cost no more than a bound.
func TestTheWorkForDescriptionsThatDoNotFitIsBounded(t *testing.T) {
	const devices = `{"devices": [{"name": "dev-a", "instance_id": 0, "size": 1}`
	search, at := tailOf(devices + `, {"name": "dev-b", "instance_id": 0, "size": 1}]}`)
	search.work = 100
	for range 100 {
		if done, _, err := search.try(at, len(search.state)); done || err != nil {
			t.Fatalf("a description that does not fit: done %v, %v", done, err)
		}
	}
	if search.work >= 0 || search.tries != 0 {
		t.Errorf("it goes on, with work for %d records and %d tries", search.work, search.tries)
	}
	search, at = tailOf(devices + `]}`)
	if done, described, err := search.try(at, len(search.state)); !done || !described || err != nil {
		t.Errorf("one that fits: %v, %v, %v", done, described, err)
	}
}

// What is broken is repaired for the few that are looked at closely: another one costs what its
// text has up to where it is broken.
func TestTheWorkForBrokenDescriptionsIsBounded(t *testing.T) {
	search, at := tailOf(`{"devices": [}` + strings.Repeat(`{"name": "dev-a", "instance_id": 0, "size": 1}, `, 1000))
	for range maxTailTries {
		search.try(at, len(search.state))
	}
	if search.loose == nil || len(search.loose.desc.Devices) == 0 || search.loose.err == nil {
		t.Fatal("a broken description is not repaired")
	}
	if n := testing.AllocsPerRun(10, func() { search.try(at, len(search.state)) }); n > 50 {
		t.Errorf("one more takes %v allocations", n)
	}
}

// A device of many fields is summed once, however many sections it has.
func TestTheLengthOfADeviceIsSummedOnce(t *testing.T) {
	desc := &VMDesc{Devices: []DeviceDesc{{Name: "dev-a", Size: -1, StructDesc: StructDesc{VMSD: "a", Fields: []FieldDesc{{Name: "f", Type: "uint8", Count: 1, Size: 1, Index: -1}}}}}}
	h := Header{Type: SectionFull, Name: "dev-a"}
	c := cutter{devices: desc, state: make([]byte, 100)}
	if n := c.described(h, 10); n != 11 {
		t.Fatalf("the body ends at %d", n)
	}
	desc.Devices[0].Fields = nil
	if n := c.described(h, 10); n != 11 {
		t.Errorf("it is summed again, to %d", n-10)
	}
	rec := Record{Type: SectionFull, Header: h, Body: []byte{1}}
	if c.judge(&rec); rec.Misfit != nil || rec.Desc != &desc.Devices[0] {
		t.Errorf("judged by another sum: %v", rec.Misfit)
	}
	rec.Body = nil
	var misfit *MisfitError
	if c.judge(&rec); !errors.As(rec.Misfit, &misfit) || misfit.Described != 1 {
		t.Errorf("a body of none: %v", rec.Misfit)
	}
}
