package vmstate

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
)

// live is a live device whose sections are one byte each.
type live struct {
	setup, part, end byte
	done             bool
	captured         bool
	must, can        uint64
	cleaned          int
	got              []byte
	version          uint32
	postcopy         bool
	resumed, unplug  bool
	err              error
}

func (l *live) SaveSetup(w *qemufile.Writer) error { w.PutByte(l.setup); return l.err }

func (l *live) SaveIterate(w *qemufile.Writer) (bool, error) {
	w.PutByte(l.part)
	return l.done, l.err
}

func (l *live) SaveComplete(w *qemufile.Writer) error { w.PutByte(l.end); return l.err }

func (l *live) SaveCompletePostcopy(w *qemufile.Writer) error { w.PutByte(l.end + 1); return l.err }

func (l *live) HasPostcopy() bool { return l.postcopy }

func (l *live) Capture() (bool, error) { l.captured = true; return !l.postcopy, l.err }

func (l *live) Pending(exact bool) (uint64, uint64) { return l.must, l.can }

func (l *live) SaveCleanup() { l.cleaned++ }

func (l *live) ResumePrepare() error { l.resumed = true; return l.err }

func (l *live) GuestUnplugPending() bool { return l.unplug }

func (l *live) SwitchoverAckNeeded() bool { return true }

func (l *live) LoadState(r *qemufile.Reader, version uint32) error {
	l.got = append(l.got, r.Byte())
	l.version = version
	return r.Err()
}

// plainLive has none of the optional methods.
type plainLive struct{}

func (plainLive) SaveSetup(*qemufile.Writer) error { return nil }

func (plainLive) SaveIterate(*qemufile.Writer) (bool, error) { return true, nil }

func (plainLive) SaveComplete(*qemufile.Writer) error { return nil }

// Between checkpoints the guest runs, and uses the fields of its devices: only parts of live
// devices may come then.
func TestPartsAloneAreTakenBetweenCheckpoints(t *testing.T) {
	const setup, part = `01 00000002 03 "ram" 00000000 00000004 11 7e 00000002`, `02 00000002 22 7e 00000002`
	for why, x := range map[string]struct {
		stream string
		want   error
	}{
		"parts":          {part + part + `00`, nil},
		"nothing":        {`00`, nil},
		"a device":       {part + `04 00000001 01 "a" 00000000 00000002 00000009 7e 00000001 00`, ErrSectionType},
		"a beginning":    {part + setup + `00`, ErrSectionType},
		"an end":         {part + `03 00000002 22 7e 00000002 00`, ErrSectionType},
		"a command":      {part + `08 0002 0000 00`, ErrSectionType},
		"a device's id":  {`02 00000001 22 7e 00000001 00`, ErrUnknownSection},
		"another's id":   {`02 00000009 22 7e 00000009 00`, ErrUnknownSection},
		"a part cut off": {part + `02 00000002`, io.ErrUnexpectedEOF},
	} {
		a, ram := &counter{N: 5}, &live{}
		var reg Registry
		wantNil(t, "register", reg.Register(Entry{Name: "a", Version: 2, MinVersion: 1}, a))
		wantNil(t, "register", reg.RegisterLive(Entry{Name: "ram", Version: 4, MinVersion: 4}, nil, ram))
		known := hexBytes(t, setup+`04 00000001 01 "a" 00000000 00000002 00000005 7e 00000001 00`)
		wantNil(t, "initial", reg.Load(reader(known), nil))
		wantNil(t, "commit", reg.Commit())
		err := reg.LoadParts(reader(hexBytes(t, x.stream)))
		if x.want == nil {
			wantNil(t, why, err)
		} else {
			wantError(t, why, err, x.want)
		}
		wantNil(t, "commit of nothing", reg.Commit())
		if a.N != 5 || len(a.posted) != 1 {
			t.Errorf("%s: the device is %d, and was applied %d times", why, a.N, len(a.posted))
		}
	}
}

// QEMU finds parts by id among all its devices, and those that it has not met
// have the id 0.
func TestALiveSectionNeverHasTheID0(t *testing.T) {
	var first, later Registry
	wantNil(t, "register", first.RegisterLive(Entry{Name: "ram"}, &live{done: true}, nil))
	wantNil(t, "register", first.Register(Entry{Name: "a"}, &counter{}))
	wantNil(t, "register", later.Register(Entry{Name: "a"}, &counter{}))
	wantNil(t, "register", later.RegisterLive(Entry{Name: "ram"}, &live{done: true}, nil))
	for name, reg := range map[string]*Registry{"live first": &first, "device first": &later} {
		got := written(t, func(w *qemufile.Writer) { w.Fail(reg.SaveSetup(w)) })
		if id := got[1:5]; !bytes.Equal(id, []byte{0, 0, 0, 1}) {
			t.Errorf("%s: ram has the id %x", name, id)
		}
	}
}

func TestSaversAreAskedInTurn(t *testing.T) {
	boom := errors.New("boom")
	a, b := &live{must: 1, can: 2, postcopy: true, end: 8}, &live{must: 10, can: 20, done: true}
	var reg Registry
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "a"}, a, a))
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "b"}, b, nil))
	if must, can := reg.Pending(true); must != 11 || can != 22 {
		t.Errorf("pending %d %d", must, can)
	}
	w := qemufile.NewWriter(io.Discard)
	if done, err := reg.SaveIterate(w); done || err != nil {
		t.Errorf("done %t, %v", done, err)
	}
	if whole, err := reg.Capture(); whole || err != nil || !a.captured || !b.captured {
		t.Errorf("capture %t, %v", whole, err)
	}
	got := written(t, func(w *qemufile.Writer) { w.Fail(reg.SaveCompleteInPostcopy(w)) })
	if want := hexBytes(t, "03 00000002 00 7e 00000002"); !bytes.Equal(got, want) {
		t.Errorf("complete in postcopy: %x", got)
	}
	got = written(t, func(w *qemufile.Writer) { w.Fail(reg.SaveCompletePostcopy(w)) })
	if want := hexBytes(t, "03 00000001 09 7e 00000001 00"); !bytes.Equal(got, want) {
		t.Errorf("complete postcopy: %x", got)
	}
	a.postcopy, a.done = false, true
	if done, _ := reg.SaveIterate(w); !done {
		t.Error("all are done")
	}
	if whole, _ := reg.Capture(); !whole {
		t.Error("all have captured")
	}
	w.SetRateLimit(1)
	if done, err := reg.SaveIterate(w); done || err != nil {
		t.Errorf("beyond the rate limit: done %t, %v", done, err)
	}
	w.SetRateLimit(0)
	if wantNil(t, "resume", reg.ResumePrepare()); !a.resumed || !b.resumed {
		t.Error("not all were prepared")
	}
	if reg.GuestUnplugPending() {
		t.Error("nothing waits for the guest")
	}
	if b.unplug = true; !reg.GuestUnplugPending() {
		t.Error("a device waits for the guest")
	}
	wantNil(t, "register", reg.RegisterLive(Entry{Name: "c"}, plainLive{}, nil))
	if whole, _ := reg.Capture(); whole {
		t.Error("a saver that cannot capture needs the guest to stay paused")
	}
	wantError(t, "a device without a loader", reg.Load(reader(hexBytes(t, `01 00000007 01 "c" 00000000 00000000`)), nil), ErrUnknownSection)
	reg.SaveCleanup()
	if a.cleaned != 1 || b.cleaned != 1 {
		t.Error("cleanup")
	}
	a.err = boom
	w = qemufile.NewWriter(io.Discard)
	_, iterate := reg.SaveIterate(w)
	_, capture := reg.Capture()
	for why, err := range map[string]error{
		"setup": reg.SaveSetup(w), "iterate": iterate, "complete": reg.SaveComplete(w), "capture": capture, "resume": reg.ResumePrepare(),
	} {
		wantError(t, why, err, boom)
	}
}
