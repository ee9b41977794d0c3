package protect

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/vmstate"
	"github.com/google/go-cmp/cmp"
)

func someHello() hello {
	return hello{
		Channel: chControl, Guest: "db1", Generation: 7, Host: "a", Token: "t",
		Offer: &offer{Machine: "pc", Memory: []part{{"ram", 1 << 30}}, Extra: []byte{1, 2}},
	}
}

func TestHelloComesBackAsItWas(t *testing.T) {
	var b bytes.Buffer
	want := someHello()
	if err := writeHello(&b, want); err != nil {
		t.Fatal(err)
	}
	b.WriteString("what follows")
	got, err := readHello(&b)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if b.String() != "what follows" {
		t.Errorf("read into what follows: %q is left", b.String())
	}
}

func TestHelloHasTheBytesThatTheCommentSays(t *testing.T) {
	var b bytes.Buffer
	if err := writeHello(&b, hello{Channel: "control", Guest: "g", Generation: 1, Host: "h"}); err != nil {
		t.Fatal(err)
	}
	body := `{"channel":"control","guest":"g","generation":1,"host":"h"}`
	if want := "LOCKSTEP\x00\x01\x00\x00\x00\x00\x00" + string(rune(len(body))) + body; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
}

// raw returns a hello with any body.
func raw(version uint16, announced uint32, body string) []byte {
	b := []byte(helloMagic)
	b = binary.BigEndian.AppendUint16(b, version)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, announced)
	return append(b, body...)
}

func TestWhatIsNoHelloIsRefused(t *testing.T) {
	long := strings.Repeat("x", 300)
	blocks := strings.TrimSuffix(strings.Repeat(`{"name":"","size":0},`, maxList+1), ",")
	for name, b := range map[string][]byte{
		"nothing":         nil,
		"http":            []byte("GET / HTTP/1.1\r\nHost: here\r\n\r\n"),
		"another version": raw(2, 2, "{}"),
		"too long":        raw(1, maxHello+1, "{}"+strings.Repeat(" ", maxHello-1)),
		"all it can":      raw(1, 1<<32-1, "{}"),
		"cut":             raw(1, 100, `{"channel"`),
		"no json":         raw(1, 3, "{{}"),
		"a long name":     raw(1, uint32(len(long)+13), `{"channel":"`+long+`"}`)[:16+len(long)+13],
		"many blocks":     raw(1, uint32(len(blocks)+23), `{"offer":{"memory":[`+blocks+`]}}`),
	} {
		if _, err := readHello(bytes.NewReader(b)); !errors.Is(err, ErrHello) {
			t.Errorf("%s: %v, want ErrHello", name, err)
		}
	}
	if _, err := readHello(bytes.NewReader(raw(1, maxHello, "{}"+strings.Repeat(" ", maxHello-2)))); err != nil {
		t.Errorf("as long as it may be: %v", err)
	}
	if err := writeHello(io.Discard, hello{Guest: strings.Repeat("x", maxHello)}); !errors.Is(err, ErrHello) {
		t.Errorf("one that is too long was written: %v", err)
	}
}

// What the other side says in its own words comes to be in LastError and in logs: a line of another
// host's, or what moves a cursor, is not passed on, nor more than a few kilobytes.
func TestWhatTheOtherSideSaysIsOneLineThatCanBePrinted(t *testing.T) {
	feigned := "is busy\nlevel=ERROR msg=\"all is lost\"\x1b[2J\xff"
	const want = "is busy level=ERROR msg=\"all is lost\" [2J\ufffd" // as JSON has what is not UTF-8
	for text, want := range map[string]string{feigned: want, strings.Repeat("x", maxHello/2): strings.Repeat("x", maxNote-3) + "..."} {
		var b bytes.Buffer
		if err := writeHello(&b, hello{Refused: text}); err != nil {
			t.Fatal(err)
		}
		if h, err := readHello(&b); err != nil || h.Refused != want {
			t.Errorf("%.40q, %v, want %.40q", h.Refused, err, want)
		}
	}
	body, err := json.Marshal(note{Say: sayEnd, Reason: feigned})
	if err != nil {
		t.Fatal(err)
	}
	head := binary.BigEndian.AppendUint16(nil, uint16(len(body)))
	if n, err := readNote(bytes.NewReader(append(head, body...))); err != nil || n.Reason != want {
		t.Errorf("%q, %v", n.Reason, err)
	}
	var b bytes.Buffer
	if err := writeNote(&b, note{Say: sayEnd, Reason: strings.Repeat("\x01", maxNote)}); err != nil {
		t.Fatal(err)
	}
	if n, err := readNote(&b); err != nil || len(n.Reason) != maxNote/8 {
		t.Errorf("a long reason came as %d bytes, %v", len(n.Reason), err)
	}
}

// Names are compared, so they are taken as they are or not at all.
func TestANameThatCannotBePrintedIsRefused(t *testing.T) {
	for _, h := range []hello{{Host: "a\nb"}, {Guest: "db\x1b[2J"}, {Host: "\u202e"}} {
		var b bytes.Buffer
		if err := writeHello(&b, h); err != nil {
			t.Fatal(err)
		}
		if _, err := readHello(&b); !errors.Is(err, ErrHello) {
			t.Errorf("%q of %q: %v, want ErrHello", h.Host, h.Guest, err)
		}
	}
}

func TestAHelloHasAtMostSoManyOfEach(t *testing.T) {
	for _, x := range []struct {
		most int
		list func(n int) *offer
	}{
		{maxList, func(n int) *offer { return &offer{Memory: make([]part, n)} }},
		{maxDisks, func(n int) *offer { return &offer{Disks: make([]part, n)} }},
		{maxNetworks, func(n int) *offer { return &offer{Networks: make([]link, n)} }},
	} {
		for n, want := range map[int]error{x.most: nil, x.most + 1: ErrHello} {
			var b bytes.Buffer
			if err := writeHello(&b, hello{Offer: x.list(n)}); err != nil {
				t.Fatal(err)
			}
			if _, err := readHello(&b); !errors.Is(err, want) {
				t.Errorf("%d where at most %d may be: %v, want %v", n, x.most, err, want)
			}
		}
	}
}

func TestWhatDoesNotFitIsSaidByName(t *testing.T) {
	here := &offer{Machine: "pc", Memory: []part{{"ram", 4096}, {"rom", 8192}}}
	linked := func(l ...link) *offer { return &offer{Machine: "pc", Memory: here.Memory, Networks: l} }
	for _, c := range []struct {
		here, there *offer
		want        string
	}{
		{linked(link{"0", "compared"}), linked(link{"0", "compared"}), ""},
		{linked(link{"0", "compared"}), linked(link{"0", "continuous"}), `network "0" here is "compared", there "continuous"`},
		{linked(link{"0", ""}), linked(), `network "0" is not there`},
		{linked(), linked(link{"0", ""}), "has 1 networks"},
	} {
		err := c.here.fits(c.there)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.there, err, c.want)
		}
	}
	for _, c := range []struct {
		there *offer
		want  string
	}{
		{&offer{Machine: "pc", Memory: []part{{"rom", 8192}, {"ram", 4096}}}, ""},
		{nil, "does not say"},
		{&offer{Machine: "q35", Memory: here.Memory}, `"q35"`},
		{&offer{Machine: "pc", Memory: []part{{"ram", 4096}}}, `memory block "rom" is not there`},
		{&offer{Machine: "pc", Memory: []part{{"ram", 4096}, {"rom", 4096}}}, `"rom" has 8192 bytes here, 4096 there`},
		{&offer{Machine: "pc", Memory: append([]part{{"vga", 1}}, here.Memory...)}, `"vga" is not here`},
	} {
		err := here.fits(c.there)
		var r *RefusedError
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &r) || r.There || !strings.Contains(r.Reason, c.want)) {
			t.Errorf("%+v: %v, want %q", c.there, err, c.want)
		}
	}
}

func TestDevicesThatCannotBeLoadedAreSaidByName(t *testing.T) {
	here := []vmstate.Entry{
		{Name: "cpu", Instance: 0, Version: 2, MinVersion: 2}, {Name: "cpu", Instance: 1, Version: 2, MinVersion: 2},
		{Name: "pci/nic", Version: 5, MinVersion: 3, Aliases: []vmstate.Alias{{Name: "nic"}}},
	}
	cpus := []device{{"cpu", 1, 2}, {"cpu", 0, 2}}
	for _, c := range []struct {
		saved []device
		want  string
	}{
		{append(cpus, device{"pci/nic", 0, 5}), ""},
		{append(cpus, device{"pci/nic", 0, 3}), ""},
		{append(cpus, device{"nic", 0, 4}), ""},
		{append(cpus, device{"nic", 0, 2}), `device "nic/0" is of version 2, here versions 3 to 5`},
		{append(cpus, device{"pci/nic", 0, 6}), `is of version 6`},
		{append(cpus, device{"pci/nic", 1, 5}), `"pci/nic/1" is not here`},
		{append(cpus, device{"sound", 0, 1}), `"sound/0" is not here`},
		{append(cpus, device{"lockstep-net-buffer", 0, 1}), `"lockstep-net-buffer/0" is not here (it is of a network: Config.Network differs)`},
		{cpus, `"pci/nic/0" here is not one of the primary's`},
	} {
		err := loads(here, c.saved)
		var r *RefusedError
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &r) || !strings.Contains(r.Reason, c.want)) {
			t.Errorf("%v: %v, want %q", c.saved, err, c.want)
		}
	}
}

// What a NIC and a Proxy register is told to be theirs, where the other host has none of it.
func TestADeviceOfANetworkIsSaidToBeOne(t *testing.T) {
	up := uplink{}
	nic, err := NewNIC(NICConfig{Uplink: up})
	if err != nil {
		t.Fatal(err)
	}
	proxy, err := NewProxy(ProxyConfig{Uplink: up, Deliver: func([]byte) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []Network{nic, proxy} {
		var reg vmstate.Registry
		if err := n.Register(&reg); err != nil {
			t.Fatal(err)
		}
		if len(reg.Entries()) == 0 {
			t.Errorf("%T registers nothing", n)
		}
		for _, e := range reg.Entries() {
			if ofNetwork(e.Name) == "" {
				t.Errorf("%T registers %q, of which nobody says whose it is", n, e.Name)
			}
		}
	}
}

// A newer is a guest one of whose devices is of another version.
type newer struct {
	Guest
	version uint32
}

func (g newer) Register(reg *vmstate.Registry) error {
	if err := g.Guest.Register(reg); err != nil {
		return err
	}
	return reg.Register(vmstate.Entry{Name: "test-clock", Version: g.version, MinVersion: g.version - 1}, g)
}

func (g newer) VMState(*vmstate.Fields) {}

// A host with newer devices follows an older one, and not the other way round.
func TestHostsCompareTheirDevicesBeforeAnythingMoves(t *testing.T) {
	of := func(version uint32) func(*Config) {
		return func(c *Config) { c.Guest = newer{c.Guest, version} }
	}
	bubble(t, "the secondary is newer", func(t *testing.T, w *world) {
		b := w.boot("b", false, of(3))
		a := w.boot("a", true, of(2))
		a.is(Protected)
		b.halt()
		a.halt()
	})
	bubble(t, "the secondary is older", func(t *testing.T, w *world) {
		b := w.boot("b", false, of(2))
		a := w.boot("a", true, of(3))
		time.Sleep(3 * time.Second)
		var r *RefusedError
		if err := a.job.Query().LastError; !errors.As(err, &r) || !r.There || !strings.Contains(r.Reason, "test-clock") {
			t.Errorf("%v", err)
		}
		if a.states() != "alone" {
			t.Errorf("something was begun: %s", a.states())
		}
		b.halt()
		a.halt()
	})
}

func TestNoteIsBounded(t *testing.T) {
	var b bytes.Buffer
	if err := writeNote(&b, note{Say: sayEnd, Reason: strings.Repeat("\x01", 1<<20)}); err != nil {
		t.Fatal(err)
	}
	if b.Len() > maxNote+2 {
		t.Errorf("%d bytes", b.Len())
	}
	if n, err := readNote(&b); err != nil || n.Say != sayEnd {
		t.Errorf("%+v, %v", n, err)
	}
	for n, want := range map[int]string{maxNote: "EOF", maxNote + 1: "at most 4096"} {
		head := binary.BigEndian.AppendUint16(nil, uint16(n))
		if _, err := readNote(bytes.NewReader(head)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a note of %d bytes: %v, want %s", n, err, want)
		}
	}
	if _, err := readNote(strings.NewReader("\x00\x02{")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

func FuzzHello(f *testing.F) {
	var b bytes.Buffer
	writeHello(&b, someHello())
	f.Add(b.Bytes())
	f.Add(raw(1, 2, "{}"))
	f.Add(raw(1, 31, fmt.Sprintf(`{"refused":%q}`, "there is no guest")))
	f.Fuzz(func(t *testing.T, in []byte) {
		h, err := readHello(bytes.NewReader(in))
		if err != nil {
			if !errors.Is(err, ErrHello) {
				t.Fatalf("%v is not ErrHello", err)
			}
			return
		}
		someHello().Offer.fits(h.Offer)
		var b bytes.Buffer
		if err := writeHello(&b, h); err != nil {
			return // it may be longer than it was: escapes
		}
		again, err := readHello(&b)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(h, again); d != "" {
			t.Fatal(d)
		}
	})
}

func FuzzNotes(f *testing.F) {
	var b bytes.Buffer
	for _, n := range []note{{Say: sayAsk, Seq: 1, TermNS: 5}, {Say: sayPromise, Seq: 1}, {Say: sayEnd, Reason: "why"}, {Say: sayGo, Seq: 9}} {
		writeNote(&b, n)
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bytes.NewReader(in)
		for {
			if _, err := readNote(r); err != nil {
				return
			}
		}
	})
}

func TestAGenerationThatHasNoNextOneIsNoHello(t *testing.T) {
	for g, want := range map[uint64]error{0: nil, maxGeneration: nil, maxGeneration + 1: ErrHello, math.MaxUint64: ErrHello} {
		var b bytes.Buffer
		if err := writeHello(&b, hello{Channel: chAsk, Guest: "g", Host: "h", Generation: g}); err != nil {
			t.Fatal(err)
		}
		if _, err := readHello(&b); !errors.Is(err, want) {
			t.Errorf("generation %d: %v", g, err)
		}
	}
}
