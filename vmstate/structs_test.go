package vmstate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
)

// card is a device of parts.
type card struct {
	Rings [2]cardRing
	Items []uint16
	Parts []cardRing
	Ctrl  *cardRing

	log *[]string
	err error
}

type cardRing struct{ Base, Head uint32 }

func (c *card) say(format string, args ...any) {
	if c.log != nil {
		*c.log = append(*c.log, fmt.Sprintf(format, args...))
	}
}

func (c *card) VMState(f *Fields) {
	ring := func(r *cardRing, f *Fields) {
		f.Uint32("base", &r.Base)
		f.Uint32("head", &r.Head)
		f.Check("head is in the ring", r.Head < 256)
		version, device := f.Version(), f.DeviceVersion()
		f.OnCommit(func() error {
			c.say("ring %d of version %d in a device of version %d", r.Base, version, device)
			return nil
		})
	}
	Structs(f, "rings", "ring", 7, c.Rings[:], ring)
	f.Uint16s("items", Counted(f, "count", &c.Items, 4))
	Structs(f, "parts", "ring", 8, Counted(f, "nparts", &c.Parts, 4), ring)
	f.OnCommit(func() error { c.say("device"); return c.err })
	Optional(f, "card/ctrl", 3, &c.Ctrl, ring)
}

func (c *card) PostLoad(v uint32) error { c.say("post load %d", v); return nil }

func fullCard() *card {
	return &card{Rings: [2]cardRing{{1, 2}, {3, 4}}, Items: []uint16{5, 6}, Parts: []cardRing{{7, 8}}, Ctrl: &cardRing{9, 10}}
}

var sameCard = cmp.Comparer(func(a, b *card) bool {
	return a.Rings == b.Rings && slices.Equal(a.Items, b.Items) && slices.Equal(a.Parts, b.Parts) && (a.Ctrl == nil) == (b.Ctrl == nil) && (a.Ctrl == nil || *a.Ctrl == *b.Ctrl)
})

var cardEntry = Entry{Name: "card", Version: 2, MinVersion: 1}

func TestPartsComeBack(t *testing.T) {
	for _, from := range []*card{fullCard(), {}} {
		for _, to := range []*card{fullCard(), {}} {
			state := saved(t, registry(t, cardEntry, from))
			reg := registry(t, cardEntry, to)
			wantNil(t, "load", reg.LoadDevices(state, nil))
			wantNil(t, "commit", reg.Commit())
			if d := cmp.Diff(from, to, sameCard); d != "" {
				t.Errorf("%+v becomes %+v", from, to)
			}
			if again := saved(t, reg); string(again) != string(state) {
				t.Errorf("saved again, it differs: %x and %x", state, again)
			}
		}
	}
}

func TestPartsAreRolledBackAtEveryByte(t *testing.T) {
	state := saved(t, registry(t, cardEntry, fullCard()))
	for n := range state {
		for _, to := range []*card{{Items: []uint16{1}, Ctrl: &cardRing{1, 1}}, {}} {
			want := *to
			reg := registry(t, cardEntry, to)
			if reg.LoadDevices(state[:n], nil) == nil {
				t.Fatalf("cut at %d: loaded", n)
			}
			if d := cmp.Diff(&want, to, sameCard); d != "" {
				t.Fatalf("cut at %d: %+v, want %+v", n, to, want)
			}
		}
	}
}

func TestPartsAreDescribed(t *testing.T) {
	reg := registry(t, cardEntry, fullCard())
	body := saved(t, reg)
	text, err := reg.VMDesc()
	wantNil(t, "describe", err)
	desc, err := ParseVMDesc(text)
	wantNil(t, "parse", err)
	s, err := desc.Devices[0].Decode(body[18 : len(body)-6])
	wantNil(t, "decode", err)
	if s.Find("count").Value != uint64(2) || len(s.Find("rings").Value.([]any)) != 2 || s.Subsections[0].VMSD != "card/ctrl" || s.Subsections[0].Version != 3 {
		t.Errorf("%+v", s)
	}
}

func TestCountsThatAreTooLargeAreRefusedOnBothSides(t *testing.T) {
	var b strings.Builder
	w := qemufile.NewWriter(&b)
	var reg Registry
	wantNil(t, "register", reg.Register(cardEntry, &card{Items: make([]uint16, 5)}))
	wantError(t, "saved", reg.SaveDevices(w), ErrBounds)
	state := saved(t, registry(t, cardEntry, fullCard()))
	at := strings.Index(string(state), "\x00\x00\x00\x02\x00\x05")
	state[at+1] = 1
	to := registry(t, cardEntry, &card{})
	wantError(t, "loaded", to.LoadDevices(state, nil), ErrBounds)
}

func TestWhatPartsWantAfterALoadIsDoneInOrder(t *testing.T) {
	state := saved(t, registry(t, cardEntry, fullCard()))
	var log []string
	c := &card{log: &log}
	reg := registry(t, cardEntry, c)
	// Loaded twice, it is applied once.
	wantNil(t, "load", reg.LoadDevices(state, nil))
	wantNil(t, "load again", reg.LoadDevices(state, nil))
	if len(log) > 0 {
		t.Errorf("before the commit: %q", log)
	}
	wantNil(t, "commit", reg.Commit())
	want := []string{
		"ring 1 of version 7 in a device of version 2", "ring 3 of version 7 in a device of version 2",
		"ring 7 of version 8 in a device of version 2", "device", "ring 9 of version 3 in a device of version 2", "post load 2",
	}
	if d := cmp.Diff(want, log); d != "" {
		t.Error(d)
	}
	log = nil
	wantNil(t, "load", reg.LoadDevices(state, nil))
	reg.Rollback()
	wantNil(t, "commit nothing", reg.Commit())
	if len(log) > 0 {
		t.Errorf("after a rollback: %q", log)
	}
	c.err = errors.New("not with me")
	wantNil(t, "load", reg.LoadDevices(state, nil))
	err := reg.Commit()
	var se *SectionError
	if !errors.Is(err, c.err) || !errors.As(err, &se) || se.Section.Name != "card" || slices.Contains(log, "post load 2") {
		t.Errorf("refused: %v, %q", err, log)
	}
}
