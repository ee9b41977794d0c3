package vmstate_test

import (
	"bytes"
	"errors"
	"fmt"
	"log"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// A timer is a device: it names its fields once.
type timer struct {
	deadline int64
	mode     uint8
	drift    uint32
	latched  uint64
}

func (t *timer) VMState(f *vmstate.Fields) {
	f.Timer("deadline", &t.deadline)
	f.Uint8("mode", &t.mode)
	f.Check("mode is known", t.mode < 6)
	if f.Version() >= 2 {
		f.Uint32("drift", &t.drift)
	}
	f.Subsection("timer/latched", 1, t.latched != 0, func(f *vmstate.Fields) {
		f.Uint64("latched", &t.latched)
	})
}

func ExampleDevice() {
	source := &timer{deadline: 1000, mode: 2, drift: 3}
	var from vmstate.Registry
	if err := from.Register(vmstate.Entry{Name: "timer", Version: 2, MinVersion: 1}, source); err != nil {
		log.Fatal(err)
	}
	var state bytes.Buffer
	w := qemufile.NewWriter(&state)
	if err := from.SaveDevices(w); err != nil {
		log.Fatal(err)
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		log.Fatal(err)
	}

	var to vmstate.Registry
	target := &timer{mode: 1}
	if err := to.Register(vmstate.Entry{Name: "timer", Version: 2, MinVersion: 1}, target); err != nil {
		log.Fatal(err)
	}
	// A stream that breaks leaves the device as it was.
	err := to.LoadDevices(state.Bytes()[:20], nil)
	fmt.Println(err, target.mode)
	// A whole one is staged, and then applied.
	if err := to.LoadDevices(state.Bytes(), nil); err != nil {
		log.Fatal(err)
	}
	if err := to.Commit(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(*target)
	// Output:
	// vmstate: section full 0 timer/0 v2 at offset 0: qemufile: read at offset 19: unexpected EOF 1
	// {1000 2 3 0}
}

// A stream can be read without its devices, by the description at its end.
func ExampleReadDocument() {
	var reg vmstate.Registry
	if err := reg.Register(vmstate.Entry{Name: "timer", Version: 2}, &timer{deadline: 1000, mode: 2, drift: 3}); err != nil {
		log.Fatal(err)
	}
	var stream bytes.Buffer
	w := qemufile.NewWriter(&stream)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
	if err := reg.SaveDevices(w); err != nil {
		log.Fatal(err)
	}
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	if err := w.Flush(); err != nil {
		log.Fatal(err)
	}

	doc, err := vmstate.ReadDocument(qemufile.NewReader(&stream), nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, rec := range doc.Records {
		fmt.Println(rec.Offset, rec.Type)
		if rec.Type == vmstate.SectionFull {
			fields, err := rec.Decode()
			if err != nil {
				log.Fatal(err)
			}
			for _, f := range fields.Fields {
				fmt.Println("  ", f.Name, f.Type, f.Value)
			}
		}
	}
	// Output:
	// 0 header
	// 8 configuration
	// 17 full
	//    deadline timer 1000
	//    mode uint8 2
	//    drift uint32 3
	// 54 eof
	// 55 vmdesc
}

// One value of a device that is known by its description alone is changed, and the stream
// is written again.
func ExampleDeviceDesc_Encode() {
	var reg vmstate.Registry
	saved := &timer{deadline: 1000, mode: 2, drift: 3}
	if err := reg.Register(vmstate.Entry{Name: "timer", Version: 2}, saved); err != nil {
		log.Fatal(err)
	}
	var stream, changed bytes.Buffer
	w := qemufile.NewWriter(&stream)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "none"})
	err1 := reg.SaveDevices(w)
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	if err := errors.Join(err1, w.Flush()); err != nil {
		log.Fatal(err)
	}

	doc, err := vmstate.ReadDocument(qemufile.NewReader(&stream), nil)
	if err != nil {
		log.Fatal(err)
	}
	for i := range doc.Records {
		rec := &doc.Records[i]
		if rec.Type != vmstate.SectionFull || rec.Header.Name != "timer" {
			continue
		}
		s, err := rec.Decode()
		if err != nil {
			log.Fatal(err)
		}
		s.Find("drift").Value = uint64(7)
		if rec.Body, err = rec.Desc.Encode(s); err != nil {
			log.Fatal(err)
		}
		s.Find("mode").Value = uint64(256)
		_, err = rec.Desc.Encode(s)
		fmt.Println(err)
	}
	w.Reset(&changed)
	if err := errors.Join(doc.Put(w), w.Flush()); err != nil {
		log.Fatal(err)
	}

	doc, err = vmstate.ReadDocument(qemufile.NewReader(&changed), nil)
	if err != nil {
		log.Fatal(err)
	}
	s, err := doc.Records[2].Decode()
	fmt.Println(s.Find("drift").Value, err)
	// Output:
	// timer:mode: unacceptable value: 256 (uint64) in a field of type uint8
	// 7 <nil>
}
