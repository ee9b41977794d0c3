package vmstate

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
)

// earlyStream returns a migration with two early devices, one of them absent, before
// and after a live one.
func earlyStream(t *testing.T, desc bool) (*Registry, []byte) {
	t.Helper()
	reg := new(Registry)
	l := &live{setup: 1, part: 2, end: 3, done: true}
	for _, err := range []error{
		reg.Register(Entry{Name: "plug", Version: 1, Early: true, Priority: 1}, deviceFunc(func(f *Fields) {
			f.Bytes("x", []byte{0x7e, 0, 0, 0, 0, 1, 0x7e, 0, 0, 0, 0, 4}) // looks like footers
		})),
		reg.RegisterLive(Entry{Name: "ram", Version: 4}, l, l),
		reg.Register(Entry{Name: "late", Version: 1}, &counter{N: 3}),
		reg.Register(Entry{Name: "plug", Instance: 1, Version: 1, Early: true}, &counter{N: 4}),
		reg.Register(Entry{Name: "plug", Instance: 2, Version: 1, Early: true}, &counter{absent: true}),
	} {
		wantNil(t, "register", err)
	}
	return reg, written(t, func(w *qemufile.Writer) {
		PutFileHeader(w)
		PutConfiguration(w, Configuration{Machine: "none"})
		w.Fail(reg.SaveSetup(w))
		_, err := reg.SaveIterate(w)
		w.Fail(err)
		w.Fail(reg.SaveComplete(w))
		w.Fail(reg.SaveDevices(w))
		PutEOF(w)
		if desc {
			reg.PutVMDesc(w)
		}
	})
}

func TestEarlyDevicesAreSavedBeforeTheLiveOnes(t *testing.T) {
	reg, stream := earlyStream(t, false)
	want := hexBytes(t, `"QEVM" 00000003 07 00000004 "none"
		04 00000000 04 "plug" 00000000 00000001 7e0000000001 7e0000000004 7e 00000000
		01 00000001 03 "ram" 00000000 00000004 01 7e 00000001
		04 00000003 04 "plug" 00000001 00000001 00000004 7e 00000003
		02 00000001 02 7e 00000001
		03 00000001 03 7e 00000001
		04 00000002 04 "late" 00000000 00000001 00000003 7e 00000002
		00`)
	if !bytes.Equal(stream, want) {
		t.Fatalf("got  %x\nwant %x", stream, want)
	}
	text, err := reg.VMDesc()
	wantNil(t, "describe", err)
	desc, err := ParseVMDesc(text)
	wantNil(t, "parse", err)
	var names []string
	for _, d := range desc.Devices {
		names = append(names, d.Name)
	}
	if !slices.Equal(names, []string{"plug", "plug", "late"}) {
		t.Errorf("described %v", names)
	}
	// A checkpoint has them all, by priority.
	state := saved(t, reg)
	if i, j := bytes.Index(state, []byte("plug")), bytes.Index(state, []byte("late")); i < 0 || i > j {
		t.Errorf("checkpoint %x", state)
	}
	r := reader(stream)
	wantNil(t, "header", ReadFileHeader(r))
	_, err = ReadConfiguration(r)
	wantNil(t, "configuration", err)
	wantNil(t, "load", reg.Load(r, nil))
	wantNil(t, "load a checkpoint", reg.LoadDevices(state, nil))
}

func TestEarlyDevicesAreReadWithoutKnowingThem(t *testing.T) {
	_, stream := earlyStream(t, true)
	// As QEMU 8 and later: a configuration first in the description.
	at := bytes.Index(stream, []byte(`{"page_size`))
	text := bytes.Replace(stream[at:], []byte(`{`), []byte(`{"configuration": {"vmsd_name": "configuration", "version": 1, "fields": [{"name": "len", "type": "uint32", "size": 4}]}, `), 1)
	stream = append(stream[:at-5:at-5], written(t, func(w *qemufile.Writer) { PutDescription(w, text) })...)
	for how, src := range map[string]io.Reader{
		"at once": bytes.NewReader(stream), "in pieces": iotest.HalfReader(bytes.NewReader(stream)), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
	} {
		doc, err := ReadDocument(qemufile.NewReader(src), oneByte{})
		wantNil(t, how, err)
		var got []string
		for _, rec := range doc.Records {
			if rec.Type == SectionFull {
				s, err := rec.Decode()
				wantNil(t, how, err)
				got = append(got, rec.Header.String())
				if f := s.Find("n"); f != nil && rec.Header.Instance == 1 && f.Value != uint64(4) {
					t.Errorf("%s: n is %v", how, f.Value)
				}
			}
		}
		want := []string{"full 0 plug/0 v1", "full 3 plug/1 v1", "full 2 late/0 v1"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", how, diff)
		}
		if again := written(t, func(w *qemufile.Writer) { doc.Put(w) }); !bytes.Equal(again, stream) {
			t.Errorf("%s: written again, it differs", how)
		}
	}
	// Without a description they are bytes.
	_, stream = earlyStream(t, false)
	doc, err := ReadDocument(reader(stream), oneByte{})
	wantNil(t, "read", err)
	if again := written(t, func(w *qemufile.Writer) { doc.Put(w) }); !bytes.Equal(again, stream) {
		t.Error("written again, it differs")
	}
	r := reader(nil)
	for n := 18; n < len(stream); n++ {
		r.Reset(bytes.NewReader(stream[:n]))
		_, err := ReadDocument(r, oneByte{})
		wantError(t, "cut", err, io.ErrUnexpectedEOF)
	}
}

// The guest's memory passes by in constant memory behind early devices too.
func TestEarlyDevicesDoNotHoldTheMemoryBack(t *testing.T) {
	var records []SectionType
	s := Scanner{
		MaxState: 1 << 10, MaxDescription: 1 << 12,
		Record: func(rec *Record) error { records = append(records, rec.Type); return nil },
		Live:   func(_ Header, r *qemufile.Reader) error { r.Skip(1 << 20); return r.Err() },
	}
	stream := io.MultiReader(
		bytes.NewReader(hexBytes(t, `"QEVM" 00000003 07 00000000 04 00000000 01 "a" 00000000 00000000 09 7e 00000000 01 00000002 03 "ram" 00000000 00000004`)),
		io.LimitReader(zeros{}, 1<<20), bytes.NewReader(hexBytes(t, `7e 00000002 00`+described(`{"devices": [{"name": "a", "instance_id": 0, "size": 1}]}`))))
	wantNil(t, "scan", s.Stream(qemufile.NewReader(stream)))
	if want := []SectionType{FileHeader, Configured, SectionFull, SectionStart, Footer, EOF, Description}; !slices.Equal(records, want) {
		t.Errorf("records %v", records)
	}
	bad := hexBytes(t, `"QEVM" 00000003 07 00000000 04 00000000 01 "a" 00000000 00000000 09 7e 00000000 01 00000002 03 "ram" 00000000 00000004 01 7e 00000002 00`+
		described(`{"devices": [{"name": "a", "instance_id": 0, "size": 2}]}`))
	_, err := ReadDocument(reader(bad), oneByte{})
	wantError(t, "described otherwise", err, ErrDescription)
}

// A source may wait behind its description for an answer: looking ahead must
// not wait for more.
func TestLookingAheadDoesNotWaitBehindTheDescription(t *testing.T) {
	stream := hexBytes(t, `"QEVM" 00000003 07 00000000 04 00000000 01 "a" 00000000 00000000 09 7e 00000000 00`+
		described(`{"devices": [{"name": "a", "instance_id": 0, "size": 1}]}`))
	pr, pw := io.Pipe()
	defer pw.Close()
	go pw.Write(stream)
	done := make(chan error, 1)
	go func() {
		_, err := ReadDocument(qemufile.NewReader(pr), oneByte{})
		done <- err
	}()
	select {
	case err := <-done:
		wantNil(t, "read", err)
	case <-time.After(time.Minute):
		t.Error("it waits")
	}
}

func TestLookingAheadCostsBoundedWork(t *testing.T) {
	head := hexBytes(t, `"QEVM" 00000003 07 00000000 04 00000000 01 "a" 00000000 00000000 `)
	// Each of these looks like the end of early devices, and none is.
	stream := append(head, bytes.Repeat(hexBytes(t, `7e 00000001 01 00000002 03 "ram" 00000000 00000004`), 1<<16)...)
	if _, err := ReadDocument(reader(stream), oneByte{}); err == nil {
		t.Error("accepted")
	}
}

// oneByte knows live sections of one byte, and only those of ram.
type oneByte struct{}

func (oneByte) DecodeLive(h Header, r *qemufile.Reader) (LiveBody, error) {
	if h.Name != "ram" {
		return nil, ErrUnknownSection
	}
	return rawBody{r.Byte()}, r.Err()
}

func TestUnknownLiveSectionsAreCarried(t *testing.T) {
	for why, body := range map[string]string{
		"nothing":                            ``,
		"bytes":                              `010203`,
		"a footer, and then a bad record":    `7e 00000007 09`,
		"a footer, and then an unknown part": `7e 00000007 02 00000009`,
		"a footer, and then a bad command":   `7e 00000007 08 0008 0001`,
		"a footer, and then a bad name":      `7e 00000007 01 00000009 02 0102 00000000 00000000`,
		"a footer, and then no name":         `7e 00000007 04 00000009 00 00000000 00000000`,
		"another footer":                     `7e 00000008 00`,
		"half a footer":                      `7e 000000`,
		"footers in each other":              `7e7e 0000007e 7e000000`,
	} {
		stream := hexBytes(t, `"QEVM" 00000003 07 00000000
			01 00000002 03 "ram" 00000000 00000004 01 7e 00000002
			01 00000007 0c "dirty-bitmap" 00000000 00000001 `+body+` 7e 00000007
			02 00000002 02 7e 00000002
			02 00000007 `+body+` 7e 00000007
			08 0008 0000
			03 00000007 `+body+` 7e 00000007
			03 00000002 02 7e 00000002
			00`)
		for how, src := range map[string]io.Reader{"at once": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream))} {
			doc, err := ReadDocument(qemufile.NewReader(src), oneByte{})
			wantNil(t, why+" "+how, err)
			n := 0
			for _, rec := range doc.Records {
				if b, ok := rec.Live.(Opaque); ok {
					n++
					if !bytes.Equal(b, hexBytes(t, body)) {
						t.Errorf("%s %s: body %x", why, how, b)
					}
				}
			}
			if n != 3 {
				t.Errorf("%s %s: %d unknown bodies", why, how, n)
			}
			if again := written(t, func(w *qemufile.Writer) { doc.Put(w) }); !bytes.Equal(again, stream) {
				t.Errorf("%s %s: written again, it differs", why, how)
			}
		}
	}
	h := Header{Type: SectionStart, ID: 7, Name: "x"}
	s := Scanner{MaxState: 1 << 20}
	wantError(t, "a body without end", s.SkipLive(h, qemufile.NewReader(zeros{}), nil), qemufile.ErrTooLong)
	wantError(t, "a cut body", s.SkipLive(h, reader(hexBytes(t, "0102 7e 00000007")), nil), io.ErrUnexpectedEOF)
	s.NoFooters = true
	wantError(t, "no footers", s.SkipLive(h, reader(nil), nil), ErrUnknownSection)
}

// Early devices are kept until the description comes: live sections among them do not make
// room for more.
func TestEarlyDevicesAreBoundedInAllOfAStream(t *testing.T) {
	section := hexBytes(t, `04 00000000 01 "a" 00000000 00000000 09 7e 00000000`)
	round := slices.Concat(bytes.Repeat(section, 100), hexBytes(t, `02 00000002 01 7e 00000002`))
	scan := func(rounds int) (devices int, err error) {
		stream := slices.Concat(
			hexBytes(t, `"QEVM" 00000003 07 00000000 01 00000002 03 "ram" 00000000 00000004 01 7e 00000002`),
			bytes.Repeat(round, rounds), hexBytes(t, `03 00000002 01 7e 00000002 00`))
		s := Scanner{
			Record: func(rec *Record) error {
				if rec.Type == SectionFull {
					devices++
				}
				return nil
			},
			Live: func(_ Header, r *qemufile.Reader) error { r.Byte(); return r.Err() },
		}
		err = s.Stream(reader(stream))
		return devices, err
	}
	most := maxEarly / (100 * len(section))
	if n, err := scan(most); err != nil || n != 100*most {
		t.Errorf("as many as may be: %d devices, %v", n, err)
	}
	n, err := scan(most + 1)
	var at *SectionError
	if !errors.Is(err, qemufile.ErrTooLong) || !errors.As(err, &at) || at.Offset == 0 || n != 100*most {
		t.Errorf("more: %d devices, %v", n, err)
	}
}
