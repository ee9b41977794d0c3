package vmstate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/gocolo/lockstep/internal/damage"
	"github.com/gocolo/lockstep/qemufile"
)

func vectors(t testing.TB, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", "qemu-7.2", pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no vectors %s: %v", pattern, err)
	}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	return names
}

// whole returns the vectors that are whole streams.
func whole(t testing.TB) []string {
	return slices.DeleteFunc(append(vectors(t, "*.bin"), vectors(t, "*.gz")...), func(name string) bool {
		return strings.Contains(name, "checkpoint") || strings.Contains(name, "package")
	})
}

func decoder(name string) *rawRAM {
	return &rawRAM{ignoreShared: strings.Contains(name, "ignore-shared")}
}

func TestStreamsOfQEMUComeBackByteForByte(t *testing.T) {
	names := whole(t)
	if testing.Short() {
		names = names[:6]
	}
	for _, name := range names {
		stream := vector(t, name)
		for how, src := range map[string]io.Reader{"at once": bytes.NewReader(stream), "in pieces": iotest.HalfReader(bytes.NewReader(stream))} {
			r := qemufile.NewReader(src)
			doc, err := ReadDocument(r, decoder(name))
			if err != nil {
				t.Errorf("%s, %s: %v", name, how, err)
				continue
			}
			if r.Offset() != int64(len(stream)) {
				t.Errorf("%s, %s: %d of %d bytes read", name, how, r.Offset(), len(stream))
			}
			again := written(t, func(w *qemufile.Writer) { doc.Put(w) })
			if !bytes.Equal(again, stream) {
				t.Errorf("%s, %s: written again, it differs", name, how)
			}
			offset := int64(0)
			devices := 0
			for _, rec := range doc.Records {
				if rec.Offset != offset {
					t.Fatalf("%s: %v at %d, want %d", name, rec.Type, rec.Offset, offset)
				}
				offset += rec.Length
				if b, ok := rec.Live.(rawBody); ok {
					offset += int64(len(b))
				}
				if rec.Type == SectionFull {
					devices++
					s, err := rec.Decode()
					if err != nil {
						t.Errorf("%s: %v", name, err)
					} else if body, err := rec.Desc.Encode(s); err != nil || !bytes.Equal(body, rec.Body) {
						t.Errorf("%s: %s is %x, and put together again %x: %v", name, rec.Header.Name, rec.Body, body, err)
					}
				}
			}
			if doc.VMDesc != nil && devices != len(doc.VMDesc.Devices) {
				t.Errorf("%s: %d devices, %d described", name, devices, len(doc.VMDesc.Devices))
			}
		}
	}
}

func TestFieldsOfUnknownDevices(t *testing.T) {
	doc, err := ReadDocument(reader(vector(t, "pc-min-1m.mig.gz")), &rawRAM{})
	wantNil(t, "read", err)
	fields := make(map[string]Struct)
	for _, rec := range doc.Records {
		if rec.Type == SectionFull {
			s, err := rec.Decode()
			wantNil(t, rec.Header.Name, err)
			fields[fmt.Sprintf("%s/%d", rec.Header.Name, rec.Header.Instance)] = s
		}
	}
	state := fields["globalstate/0"]
	if f := state.Find("runstate"); f == nil || !strings.HasPrefix(string(f.Value.([]byte)), "running\x00") {
		t.Errorf("run state %v", f)
	}
	cpu := fields["cpu/0"]
	if regs, ok := cpu.Find("env.regs").Value.([]any); !ok || len(regs) != 16 {
		t.Errorf("registers %v", cpu.Find("env.regs"))
	} else if _, ok := regs[0].(uint64); !ok {
		t.Errorf("a register is %T", regs[0])
	}
	segs := cpu.Find("env.segs").Value.([]any)
	if s, ok := segs[1].(Struct); !ok || s.Find("selector") == nil {
		t.Errorf("segments %v", segs)
	}
	fp := cpu.Find("env.fpregs").Value.([]any)[0].(Struct)
	if tmp, ok := fp.Find("tmp").Value.(Struct); !ok || tmp.Find("tmp_exp") == nil {
		t.Errorf("fpregs %v", fp)
	}
	if len(cpu.Subsections) == 0 || cpu.Subsections[0].Find("env.poll_control_msr") == nil {
		t.Errorf("subsections %v", cpu.Subsections)
	}
	text, err := json.Marshal(state)
	wantNil(t, "json", err)
	if !strings.HasPrefix(string(text), `{"size":8,"runstate":"72756e6e696e6700`) {
		t.Errorf("json %s", text)
	}
	if text, err = json.Marshal(cpu); err != nil || !strings.Contains(string(text), `"subsections":{"cpu/poll_control_msr":{"env.poll_control_msr":`) {
		t.Errorf("json %v %.200s", err, text)
	}
}

func TestEveryTruncationOfAStream(t *testing.T) {
	for _, name := range []string{"precopy_none_1M.bin", "precopy_none_1M_x-ignore-shared.bin", "colo_none_1M_initial.bin", "none.mig.gz"} {
		stream := vector(t, name)
		doc, err := ReadDocument(reader(stream), decoder(name))
		wantNil(t, name, err)
		end := doc.Records[len(doc.Records)-1].Offset // of the description
		r := reader(nil)
		step := 1
		if testing.Short() {
			step = 7
		}
		for n := 0; n < len(stream); n += step {
			r.Reset(bytes.NewReader(stream[:n]))
			cut, err := ReadDocument(r, decoder(name))
			switch {
			case n == 0:
				wantError(t, "nothing at all", err, io.EOF)
			case int64(n) == end:
				// Cut after EOF it is a stream without a description.
				wantNil(t, "no description", err)
				again := written(t, func(w *qemufile.Writer) { cut.Put(w) })
				if !bytes.Equal(again, stream[:n]) {
					t.Errorf("%s without its description differs", name)
				}
			default:
				wantError(t, fmt.Sprintf("%s cut at %d", name, n), err, io.ErrUnexpectedEOF)
				var se *SectionError
				if !errors.As(err, &se) || se.Offset > int64(n) {
					t.Fatalf("%s cut at %d: %v", name, n, err)
				}
			}
		}
	}
}

func TestNothingBehindAStreamIsRead(t *testing.T) {
	stream := vector(t, "colo_none_1M_initial.bin")
	checkpoint := vector(t, "colo_none_1M_checkpoint1.bin")
	src := bytes.NewReader(slices.Concat(stream, checkpoint))
	r := qemufile.NewReader(src)
	var records []Record
	s := Scanner{
		Record: func(rec *Record) error { records = append(records, *rec); return nil },
		Live: func(h Header, r *qemufile.Reader) error {
			body, err := new(rawRAM).DecodeLive(h, r)
			records[len(records)-1].Live = body
			return err
		},
	}
	wantNil(t, "initial migration", s.Stream(r))
	if r.Offset() != int64(len(stream)) {
		t.Fatalf("read to %d, want %d", r.Offset(), len(stream))
	}
	records = nil
	if r.BE32() != 3 {
		t.Fatal("no vmstate-send")
	}
	wantNil(t, "live state", s.Sections(r))
	if r.BE32() != 4 {
		t.Fatal("no vmstate-size")
	}
	n := r.BE64()
	wantNil(t, "device state", s.State(r.Bytes(n, 1<<20), r.Offset()-int64(n)))
	again := written(t, func(w *qemufile.Writer) {
		w.PutBE32(3)
		for i := range records {
			if records[i].Type == SectionFull && i > 0 && records[i-1].Type == EOF {
				w.PutBE32(4)
				w.PutBE64(n)
			}
			records[i].Put(w)
		}
	})
	if !bytes.Equal(again, checkpoint) {
		t.Errorf("the checkpoint differs:\n%x\n%x", again, checkpoint)
	}
	for _, rec := range records {
		if rec.Type == SectionFull && rec.Desc == nil {
			t.Errorf("%s is not described by the initial migration", rec.Header)
		}
	}
}

func TestAPackageIsCutByItsFooters(t *testing.T) {
	pack := vector(t, "postcopy_package_none.bin")
	stream := written(t, func(w *qemufile.Writer) {
		PutFileHeader(w)
		PutConfiguration(w, Configuration{Machine: "none"})
		PutPackaged(w, pack)
		PutEOF(w)
	})
	doc, err := ReadDocument(reader(stream), &rawRAM{})
	wantNil(t, "read", err)
	var kinds []string
	for _, rec := range doc.Records[2].Package {
		kinds = append(kinds, fmt.Sprint(rec.Type, " ", rec.Header.Name, rec.Command.Type))
	}
	want := []string{"command postcopy-listen", "full timerinvalid", "full globalstateinvalid", "command ping", "command postcopy-run"}
	if !slices.Equal(kinds, want) {
		t.Errorf("got %q", kinds)
	}
	if again := written(t, func(w *qemufile.Writer) { doc.Put(w) }); !bytes.Equal(again, stream) {
		t.Error("written again, it differs")
	}
	// A stream that QEMU wrote has a package too.
	doc, err = ReadDocument(reader(vector(t, "postcopy_none_8M_stream.bin")), &rawRAM{})
	wantNil(t, "read", err)
	if !slices.ContainsFunc(doc.Records, func(r Record) bool { return len(r.Package) == 5 }) {
		t.Error("no package")
	}
}

func TestAFooterInsideABodyDoesNotCutIt(t *testing.T) {
	// A body that looks like its own footer, and like a section after it.
	evil := hexBytes(t, `7e 00000000 04 00000000 01 "a" 00000000 00000000 7e 00000000 7e 00000000 00`)
	d := deviceFunc(func(f *Fields) { f.Bytes("evil", evil) })
	var reg Registry
	wantNil(t, "register", reg.Register(Entry{Name: "a"}, d))
	wantNil(t, "register", reg.Register(Entry{Name: "b"}, &counter{N: 0x7e}))
	stream := written(t, func(w *qemufile.Writer) {
		PutFileHeader(w)
		PutConfiguration(w, Configuration{})
		w.Fail(reg.SaveDevices(w))
		PutEOF(w)
		reg.PutVMDesc(w)
	})
	doc, err := ReadDocument(reader(stream), &rawRAM{})
	wantNil(t, "read", err)
	if got := doc.Records[2].Body; !bytes.Equal(got, evil) {
		t.Errorf("body %x", got)
	}
}

// described returns a description section in hex.
func described(text string) string { return fmt.Sprintf("06 %08x %x", len(text), text) }

func TestScannerRefuses(t *testing.T) {
	head := hexBytes(t, `"QEVM" 00000003 07 00000000`)
	device := `04 00000001 01 "a" 00000000 00000000 09 7e 00000001 `
	for why, x := range map[string]struct {
		hex  string
		want error
	}{
		"an unknown section":               {`09`, ErrSectionType},
		"an unknown live section's end":    {`01 00000001 03 "xyz" 00000000 00000000 010203`, io.ErrUnexpectedEOF},
		"a part without a start":           {`02 00000001`, ErrUnknownSection},
		"an unknown command":               {`08 0063 0000`, ErrCommand},
		"devices that cannot be cut":       {`04 00000001 01 "a" 00000000 00000000 09 00`, ErrFooter},
		"bytes after EOF":                  {device + `00 00`, ErrTrailing},
		"a description of other devices":   {device + `00` + described(`{"devices": []}`), io.ErrUnexpectedEOF},
		"a package in a package":           {`08 0007 0004 00000009 08 0007 0004 00000000 00`, ErrCommand},
		"a package beyond the limit":       {`08 0007 0004 ffffffff`, qemufile.ErrTooLong},
		"a description of no devices":      {`00 06 00000001 "x"`, ErrDescription},
		"a description of absent devices":  {`00` + described(`{"devices": [{"name": "a", "size": 1}]}`), ErrDescription},
		"a description longer than it may": {`00 06 ffffffff`, qemufile.ErrTooLong},
	} {
		tail := hexBytes(t, x.hex)
		_, err := ReadDocument(reader(append(bytes.Clone(head), tail...)), &rawRAM{})
		wantError(t, why, err, x.want)
	}
	_, err := ReadDocument(reader(append(bytes.Clone(head), hexBytes(t, `01 00000001 03 "xyz" 00000000 00000000`)...)), nil)
	wantError(t, "a live section nobody reads", err, ErrUnknownSection)
	s := Scanner{Record: func(*Record) error { return nil }, MaxState: 1000, MaxDescription: 1000}
	endless := io.MultiReader(bytes.NewReader(head), bytes.NewReader(hexBytes(t, device)), zeros{})
	wantError(t, "devices without end", s.Stream(qemufile.NewReader(endless)), qemufile.ErrTooLong)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHostileFootersCostBoundedWork(t *testing.T) {
	// Every position may be an end, and none leads anywhere.
	section := hexBytes(t, `04 00000000 01 "a" 00000000 00000000 7e 00000000`)
	state := bytes.Repeat(section, 1<<12)
	s := Scanner{Record: func(*Record) error { return nil }}
	if err := s.State(append(state, 9), 0); err == nil {
		t.Error("accepted")
	}
	// Nor does depth cost more than it may.
	s.State(append(bytes.Repeat(section, maxSections+2), 0), 0)
}

func FuzzDocument(f *testing.F) {
	for _, name := range []string{"precopy_none_1M.bin", "colo_none_1M_initial.bin", "postcopy_none_8M_stream.bin", "none.mig.gz"} {
		f.Add(vector(f, name))
		for _, p := range damage.Copies(1, 5, records(f, vector(f, name), decoder(name))) {
			f.Add(p)
		}
	}
	head := hexBytes(f, `"QEVM" 00000003 07 00000000`)
	for _, x := range badStates(f) {
		f.Add(slices.Concat(head, x))
		f.Add(slices.Concat(head, x, hexBytes(f, described(`{"devices": [{"name": "all", "size": 1}, {"name": "c", "size": 4}]}`))))
	}
	for _, x := range []string{
		`04 00000001 01 "a" 00000000 00000000 09 7e 00000001 01 00000002 01 "x" 00000000 00000000 7e 00000002 00` + described(`{"devices": [{"name": "a", "size": 1}]}`), // early
		`01 00000002 01 "x" 00000000 00000000 7e 00000002 02 00000002 7e 00000001 7e 00000002 00`,                                                                        // unknown
		`04 00000001 01 "a" 00000000 00000000 00 7e 00000001 00 06 ffffffff 7b22`,
	} {
		f.Add(slices.Concat(head, hexBytes(f, x)))
	}
	f.Fuzz(func(t *testing.T, p []byte) { comesBackOrIsRefused(t, p, &rawRAM{}) })
}

// comesBackOrIsRefused reads a stream as a document: what is written of that is the same again, and
// an error says where in the stream it is.
func comesBackOrIsRefused(t *testing.T, p []byte, live *rawRAM) {
	t.Helper()
	r := reader(p)
	doc, err := ReadDocument(r, live)
	if err != nil {
		var se *SectionError
		if !errors.As(err, &se) || se.Offset < 0 || se.Offset > int64(len(p)) {
			t.Fatalf("error of unknown kind: %v", err)
		}
		return
	}
	if again := written(t, func(w *qemufile.Writer) { doc.Put(w) }); !bytes.Equal(again, p[:r.Offset()]) {
		t.Fatalf("%.100x... of %d bytes becomes %.100x... of %d", p, r.Offset(), again, len(again))
	}
	for _, rec := range doc.Records {
		if rec.Type == SectionFull && rec.Desc != nil {
			encodesWhatItDecodes(t, &rec)
		}
	}
}

func TestVectorsHaveAnOrigin(t *testing.T) {
	if _, err := os.Stat(filepath.Join("testdata", "qemu-7.2", "README.md")); err != nil {
		t.Error(err)
	}
}

func TestTheRecordsOfADocumentAreBounded(t *testing.T) {
	const most, packaged = 3000, 1000
	document := func(commands int) (*Document, error) {
		stream := written(t, func(w *qemufile.Writer) {
			PutFileHeader(w)
			PutConfiguration(w, Configuration{Machine: "none"})
			nested := written(t, func(w *qemufile.Writer) {
				for range packaged - 1 {
					PutCommand(w, OpenReturnPath())
				}
				PutEOF(w)
			})
			PutPackaged(w, nested)
			for range commands {
				PutCommand(w, OpenReturnPath())
			}
			PutEOF(w)
		})
		return readDocument(qemufile.NewReader(bytes.NewReader(stream)), nil, most, maxDocument)
	}
	const others = 2 + 1 + packaged + 1 // header, configuration, the package with what is in it, and EOF
	if doc, err := document(most - others); err != nil || len(doc.Records) != most-packaged {
		t.Errorf("as many as may be: %d records, %v", len(doc.Records), err)
	}
	doc, err := document(most - others + 1)
	var se *SectionError
	if !errors.Is(err, ErrBounds) || !errors.As(err, &se) || se.Offset == 0 || len(doc.Records) != most-packaged {
		t.Errorf("one more: %d records, %v", len(doc.Records), err)
	}
}

// knowsNothing knows no live device.
type knowsNothing struct{}

func (knowsNothing) DecodeLive(Header, *qemufile.Reader) (LiveBody, error) {
	return nil, ErrUnknownSection
}

// Each of them may be as long as it is, and so may as many as there are, but not all together.
func TestTheBytesOfADocumentAreBounded(t *testing.T) {
	body := strings.Repeat("55", 1000)
	for what, records := range map[string]string{
		"packages":             strings.Repeat(`08 0007 0004 000003ee `+strings.Repeat(`08 0001 0000 `, 201)+`00 `, 5),
		"unknown live devices": `01 00000007 0c "dirty-bitmap" 00000000 00000001 ` + body + ` 7e 00000007 ` + strings.Repeat(`02 00000007 `+body+` 7e 00000007 `, 4),
	} {
		stream := hexBytes(t, `"QEVM" 00000003 07 00000004 "none" `+records+` 00`)
		read := func(room int) (*Document, error) {
			return readDocument(qemufile.NewReader(bytes.NewReader(stream)), knowsNothing{}, maxRecords, int64(room))
		}
		doc, err := read(len(stream))
		wantNil(t, what, err)
		if again := written(t, func(w *qemufile.Writer) { doc.Put(w) }); !bytes.Equal(again, stream) {
			t.Errorf("%s: written again, it differs", what)
		}
		for _, room := range []int{len(stream) - 1, len(stream) / 2, 20} {
			doc, err := read(room)
			var se *SectionError
			if !errors.Is(err, ErrBounds) || !errors.As(err, &se) || se.Offset == 0 {
				t.Errorf("%s in %d bytes: %v", what, room, err)
			}
			if n := len(written(t, func(w *qemufile.Writer) { doc.Put(w) })); n > room+len(body) {
				t.Errorf("%s in %d bytes: %d are kept", what, room, n)
			}
		}
	}
}
