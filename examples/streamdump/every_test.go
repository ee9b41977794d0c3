package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// opaqueRAM keeps memory as it came.
type opaqueRAM struct{}

func (opaqueRAM) DecodeLive(h vmstate.Header, r *qemufile.Reader) (vmstate.LiveBody, error) {
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	var k ram.Walker
	err := k.Walk(r, func(rec *ram.Record) error { rec.Put(w, ram.Format{}); return nil })
	w.Flush()
	return vmstate.Opaque(b.Bytes()), err
}

// Whichever device it is that does not fit, and however, all others are decoded:
// with footers and without.
func TestWhicheverDeviceDoesNotFitTheOthersAreDecoded(t *testing.T) {
	for k, name := range []string{"pc.mig", "pc-no-footers.mig", "pc-i440fx-2.3.mig"} {
		stream, err := os.ReadFile(file(t, name))
		if err != nil {
			t.Fatal(err)
		}
		doc, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(stream)), opaqueRAM{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range doc.Records {
			rec := &doc.Records[i]
			if rec.Type != vmstate.SectionFull || i%3 != k {
				continue // each device in one of them
			}
			if testing.Short() && i%36 != k {
				continue
			}
			was := rec.Body
			for how, body := range map[string][]byte{
				"longer": slices.Concat(was, []byte{1, 2, 3, 4, 5}), "longer by zeros": slices.Concat(was, make([]byte, 8)),
				"shorter": was[:len(was)-1], "empty": nil, "twice": slices.Concat(was, was),
			} {
				rec.Body = body
				changed := written(t, func(w *qemufile.Writer) { doc.Put(w) })
				got, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(changed)), opaqueRAM{})
				lost := []string{}
				for j := range got.Records {
					if r := &got.Records[j]; r.Type == vmstate.SectionFull {
						if _, err := r.Decode(); err != nil {
							lost = append(lost, r.Header.Name)
						}
					}
				}
				if err != nil || !slices.Equal(lost, []string{rec.Header.Name}) {
					t.Errorf("%s, %s %s: %v, lost %q", name, rec.Header, how, err, lost)
				}
				if again := written(t, func(w *qemufile.Writer) { got.Put(w) }); !bytes.Equal(again, changed) {
					t.Errorf("%s, %s %s: written again, it differs", name, rec.Header, how)
				}
			}
			rec.Body = was
		}
	}
}

// Nor does damage to the description cost more than a device or two.
func TestWhateverIsWrongInTheDescriptionTheOthersAreDecoded(t *testing.T) {
	stream, err := os.ReadFile(file(t, "pc.mig"))
	if err != nil {
		t.Fatal(err)
	}
	begin := bytes.Index(stream, []byte(`{"page_size"`))
	first := bytes.Index(stream, []byte(`{"name": "timer"`))
	r := rand.New(rand.NewPCG(1, 2))
	n := 60
	if testing.Short() {
		n = 6
	}
	for range n {
		p := bytes.Clone(stream)
		at := first + r.IntN(len(p)-first-4)
		p[at] = [...]byte{0xff, '"', '}', '9', ' ', ','}[r.IntN(6)]
		var records []*vmstate.Record
		s := vmstate.Scanner{
			Record: func(rec *vmstate.Record) error { records = append(records, rec); return nil },
			Live: func(h vmstate.Header, r *qemufile.Reader) error {
				_, err := opaqueRAM{}.DecodeLive(h, r)
				return err
			},
		}
		err := s.Stream(qemufile.NewReader(bytes.NewReader(p)))
		devices, lost := 0, 0
		for _, rec := range records {
			if rec.Type == vmstate.SectionFull {
				devices++
				if _, err := rec.Decode(); err != nil {
					lost++
				}
			}
		}
		if devices != 30 || lost > 2 {
			t.Errorf("byte %d of the description, %q for %q in %q: %d devices, %d lost, %v",
				at-begin, p[at], stream[at], stream[at-20:at+20], devices, lost, err)
		}
	}
}
