package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/cli"
	"github.com/gocolo/lockstep/internal/packet"
)

// plain unpacks a capture of testdata.
func plain(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func written(t testing.TB, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "x.pcap")
	if err := os.WriteFile(name, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return name
}

// each calls fn for the packets of a pcap file in little-endian order: the record's
// header and its data may be changed.
func each(b []byte, fn func(n int, head, data []byte)) {
	for i, n := 24, 1; i+16 <= len(b); n++ {
		size := int(binary.LittleEndian.Uint32(b[i+8:]))
		fn(n, b[i:i+16], b[i+16:i+16+size])
		i += 16 + size
	}
}

// summed runs netcompare, and returns its summary and its notes.
func summed(t testing.TB, args ...string) (sum map[string]int, notes string, err error) {
	t.Helper()
	var out bytes.Buffer
	err = run(t.Context(), append([]string{"-json"}, args...), &out, io.Discard)
	if out.Len() == 0 {
		return nil, "", err // it was refused
	}
	for l := range strings.SplitSeq(strings.TrimSpace(out.String()), "\n") {
		var v struct {
			Note    string
			Summary map[string]int
		}
		if jerr := json.Unmarshal([]byte(l), &v); jerr != nil {
			t.Fatalf("%q: %v", l, jerr)
		}
		notes += v.Note + "\n"
		if v.Summary != nil {
			sum = v.Summary
		}
	}
	return sum, notes, err
}

func TestGuestsThatSaidTheSameMatchHoweverTheyWereCaptured(t *testing.T) {
	data := func(name string) string { return filepath.Join("testdata", name) }
	unpacked := written(t, plain(t, "a.pcap.gz"))
	for _, c := range []struct {
		args       []string
		p, s, wait int
		note       string
	}{
		{[]string{data("a.pcap.gz"), data("b.pcap.gz")}, 23, 22, 0, "3 echo replies"},
		{[]string{data("b.pcap.gz"), data("a.pcap.gz")}, 22, 23, 0, ""},
		{[]string{unpacked, data("b.pcap.gz")}, 23, 22, 0, ""},
		{[]string{data("a.nano.pcap.gz"), data("b.nano.pcap.gz")}, 23, 22, 0, ""},
		{[]string{data("a.pcapng.gz"), data("b.pcap.gz")}, 23, 22, 0, ""},
		{[]string{data("a.sll.pcap.gz"), data("b.sll.pcap.gz")}, 23, 22, 0, ""},
		{[]string{data("a.sll.pcap.gz"), data("b.pcap.gz")}, 23, 22, 0, ""},
		{[]string{data("a.vlan.pcap.gz"), data("b.pcap.gz")}, 23, 22, 0, ""},
		{[]string{data("a.vlan.pcap.gz"), data("a.vlan.pcap.gz")}, 23, 23, 0, ""},
		{[]string{"-vlan", "5", data("a.vlan.pcap.gz"), data("a.vlan.pcap.gz")}, 23, 23, 0, ""},
		{[]string{"-vlan", "6", data("a.vlan.pcap.gz"), data("a.vlan.pcap.gz")}, 0, 0, 0, ""},
		{[]string{"-vlan", "0", data("a.vlan.pcap.gz"), data("a.vlan.pcap.gz")}, 0, 0, 0, ""},
		{[]string{data("a.snap.pcap.gz"), data("b.snap.pcap.gz")}, 23, 22, 0, "packets were cut"},
		{[]string{data("a.snap.pcap.gz"), data("b.pcap.gz")}, 23, 22, 0, "packets were cut"},
		{[]string{data("a.pcap.gz"), data("b.snap.pcap.gz")}, 23, 22, 0, "packets were cut"},
		{[]string{data("a.cut.pcap.gz"), data("b.pcap.gz")}, 13, 22, 8, "ends within a packet, behind 13"},
		{[]string{"-guest", "52:54:00:00:00:01", data("a.both.pcap.gz"), data("b.both.pcap.gz")}, 23, 22, 0, ""},
		{[]string{"-guest", "10.9.0.1", data("a.both.pcap.gz"), data("b.both.pcap.gz")}, 23, 22, 0, ""},
		{[]string{"-guest", "10.9.0.1", data("a.both.pcap.gz"), data("b.sll.pcap.gz")}, 23, 22, 0, ""},
		{[]string{"-guest", "52:54:00:00:00:09,10.9.0.1", data("a.both.pcap.gz"), data("b.pcap.gz")}, 23, 22, 0, ""},
		{[]string{"-guest", "10.9.0.9", data("a.both.pcap.gz"), data("b.both.pcap.gz")}, 0, 0, 0, ""},
		{[]string{data("a.both.pcap.gz"), data("b.both.pcap.gz")}, 44, 42, 0, "-guest says"},
	} {
		sum, notes, err := summed(t, c.args...)
		if err != nil || sum["primary"] != c.p || sum["secondary"] != c.s || sum["matched"] != c.p || sum["checkpoints"] != 0 || sum["waiting"] != c.wait {
			t.Errorf("%v: %v, %v\n%s", c.args, sum, err, notes)
		}
		if !strings.Contains(notes, c.note) {
			t.Errorf("%v: %q, want %q", c.args, notes, c.note)
		}
	}
}

func TestADivergenceShowsWhereInTheStreamAndBothSides(t *testing.T) {
	b := plain(t, "a.pcap.gz")
	each(b, func(n int, head, data []byte) {
		if n == 9 {
			data[66+5000] ^= 0x20 // from "x" to "X"
		}
	})
	var out bytes.Buffer
	err := run(t.Context(), []string{written(t, b), "testdata/b.pcap.gz"}, &out, io.Discard)
	const want = "diverged: data, 10.9.0.1:80 > 10.9.0.2:40000 proto 6, at offset 37060:\n" +
		"                primary 58 78 78 78 78 78 78 78 78 78 78 78 78 78 78 78   Xxxxxxxxxxxxxxxx\n" +
		"              secondary 78 78 78 78 78 78 78 78 78 78 78 78 78 78 78 78   xxxxxxxxxxxxxxxx\n"
	if !errors.Is(err, errDiverged) || !strings.Contains(out.String(), want) {
		t.Errorf("%v\n%s", err, out.String())
	}
	// It is the only one: what the secondary said beyond it is not forgotten.
	if sum, _, _ := summed(t, written(t, b), "testdata/b.pcap.gz"); sum["checkpoints"] != 1 || sum["matched"] != 22 {
		t.Errorf("%v", sum)
	}
	// One that was not captured is none, and one that was is.
	for _, c := range []struct {
		at      int
		differs bool
	}{{70, true}, {66 + 5000, false}} {
		b := plain(t, "a.pcap.gz")
		each(b, func(n int, head, data []byte) {
			if n == 5 {
				data[c.at] ^= 0x20
			}
		})
		_, notes, err := summed(t, written(t, b), "testdata/b.snap.pcap.gz")
		if errors.Is(err, errDiverged) != c.differs {
			t.Errorf("a byte at %d: %v\n%s", c.at, err, notes)
		}
	}
}

func TestClocksAreSetByTheConnections(t *testing.T) {
	b := plain(t, "b.pcap.gz")
	each(b, func(n int, head, data []byte) {
		binary.LittleEndian.PutUint32(head, binary.LittleEndian.Uint32(head)+3600)
	})
	late := written(t, b)
	for _, c := range []struct {
		args []string
		same bool
		note string
	}{
		{[]string{"testdata/a.pcap.gz", late}, true, "the secondary's times are moved by -59m59."},
		{[]string{"-offset", "-1h", "testdata/a.pcap.gz", late}, true, ""},
		{[]string{"-offset", "0s", "testdata/a.pcap.gz", late}, false, ""},
	} {
		_, notes, err := summed(t, c.args...)
		if (err == nil) != c.same || !strings.Contains(notes, c.note) {
			t.Errorf("%v: %v %q", c.args, err, notes)
		}
	}
}

// Two connections one after the other between the same ports, with numbers of their
// own each.
func TestEachConnectionHasItsNumbers(t *testing.T) {
	twice := func(name string, add uint32) string {
		b := plain(t, name)
		again := bytes.Clone(b)
		each(again, func(n int, head, data []byte) {
			binary.LittleEndian.PutUint32(head, binary.LittleEndian.Uint32(head)+10)
			var p packet.Packet
			if p.Parse(data); p.IsTCP() {
				p.TCP().SetSeq(p.TCP().Seq() + add)
				p.TCP().SetAck(p.TCP().Ack() + 3*add)
			}
		})
		return written(t, append(b, again[24:]...))
	}
	sum, notes, err := summed(t, twice("a.pcap.gz", 1<<28), twice("b.pcap.gz", 77777))
	if err != nil || sum["primary"] != 46 || sum["matched"] != 46 {
		t.Errorf("%v %v %q", sum, err, notes)
	}
}

func TestAConnectionThatBeginsInOneCaptureOnlyIsSaidToBe(t *testing.T) {
	b := plain(t, "b.pcap.gz")
	rest := b[:24:24]
	each(b, func(n int, head, data []byte) {
		if n > 2 {
			rest = append(append(rest, head...), data...)
		}
	})
	_, notes, err := summed(t, "testdata/a.pcap.gz", written(t, rest))
	if !errors.Is(err, errDiverged) || !strings.Contains(notes, "1 connections begin in one capture only") {
		t.Errorf("%v %q", err, notes)
	}
	if _, notes, err := summed(t, written(t, rest), written(t, rest)); err != nil {
		t.Errorf("the same numbers: %v %q", err, notes)
	}
}

func TestWhatEndsTooEarlyIsSummedUp(t *testing.T) {
	b := plain(t, "a.pcap.gz")
	packed, err := os.ReadFile("testdata/a.pcap.gz")
	if err != nil {
		t.Fatal(err)
	}
	ng := plain(t, "a.pcapng.gz")
	for why, c := range map[string][]byte{
		"cut in a packet":      b[:100000],
		"cut in a head":        b[:24+16+42+5],
		"cut behind a head":    b[:24+16+42+16],
		"cut by the packer":    packed[:1000],
		"a pcapng that is cut": ng[:100000],
	} {
		sum, notes, err := summed(t, written(t, c), "testdata/b.pcap.gz")
		if err != nil || sum["primary"] == 0 || sum["matched"] != sum["primary"] || !strings.Contains(notes, "ends within a packet") {
			t.Errorf("%s: %v, %v %q", why, sum, err, notes)
		}
	}
}

func TestWhatIsNoCaptureIsRefused(t *testing.T) {
	b, err := os.ReadFile(record(t, udpA))
	if err != nil {
		t.Fatal(err)
	}
	good := written(t, b)
	for why, c := range map[string][]byte{
		"empty":             {},
		"something else":    bytes.Repeat([]byte("x"), 100),
		"another link type": append(bytes.Clone(b[:23]), append([]byte{105}, b[24:]...)...),
		"a packet of a GiB": append(bytes.Clone(b[:32]), append([]byte{0x40}, b[33:]...)...),
		"a gzip of nothing": {0x1f, 0x8b},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), []string{good, written(t, c)}, &out, io.Discard); err == nil || errors.Is(err, errDiverged) || errors.Is(err, cli.ErrWrong) {
			t.Errorf("%s: %v\n%s", why, err, out.String())
		}
	}
	for _, args := range [][]string{{good}, {"-guest", "nobody", good, good}, {"-vlan", "5000", good, good}, {"-offset", "later", good, good}} {
		if err := run(t.Context(), args, io.Discard, io.Discard); !errors.Is(err, cli.ErrWrong) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if err := run(t.Context(), []string{good, "no-such-file"}, io.Discard, io.Discard); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestLinksWithoutEthernetAreRead(t *testing.T) {
	frame, err := hex.DecodeString(udpA)
	if err != nil {
		t.Fatal(err)
	}
	for link, head := range map[uint32]string{
		1:   udpA[:28],
		113: "0004 0001 0006 52a400127866 0000 0800",
		276: "0800 0000 00000002 0001 04 06 52a400127866 0000",
		9:   "0021",
		50:  "ff03 0021",
		12:  "",
		14:  "",
		101: "",
		228: "",
		0:   "02000000", // a loopback, where it was captured by a little-endian system
		108: "00000002",
	} {
		h, err := hex.DecodeString(strings.ReplaceAll(head, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		data := append(h, frame[14:]...)
		file := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
		file = append(file, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0)
		file = binary.LittleEndian.AppendUint32(file, link)
		file = append(file, 1, 0, 0, 0, 0, 0, 0, 0)
		file = binary.LittleEndian.AppendUint32(file, uint32(len(data)))
		file = binary.LittleEndian.AppendUint32(file, uint32(len(data)))
		sum, _, err := summed(t, written(t, append(file, data...)), record(t, udpA))
		if err != nil || sum["matched"] != 1 {
			t.Errorf("link type %d: %v %v", link, sum, err)
		}
	}
	for link, packets := range map[byte][]string{ // with less than an IP header
		0: {"", "02", "02000000", "1800000060", "070000000909"},
		9: {"", "ff", "ff03", "ff0300", "0021", "ff03005760", "c0210901"},
	} {
		for _, packet := range packets {
			f, err := hex.DecodeString(packet)
			if err != nil {
				t.Fatal(err)
			}
			b := classic(binary.LittleEndian, 0xa1b2c3d4, [][]byte{f})
			b[20] = link
			file := written(t, b)
			if sum, _, err := summed(t, file, file); err != nil || sum["uncompared"] != 1 {
				t.Errorf("%q on a link of type %d: %v %v", packet, link, sum, err)
			}
		}
	}
}

func FuzzCapture(f *testing.F) {
	for _, name := range []string{"a.snap.pcap.gz", "b.snap.pcap.gz"} {
		f.Add(plain(f, name))
	}
	f.Add(plain(f, "a.pcapng.gz")[:2000])
	f.Add(plain(f, "a.sll.pcap.gz")[:2000])
	f.Add(plain(f, "a.vlan.pcap.gz")[:2000])
	other := "testdata/b.snap.pcap.gz"
	f.Fuzz(func(t *testing.T, b []byte) {
		name := written(t, b)
		for _, args := range [][]string{{name, other}, {"-guest", "10.9.0.1", other, name}} {
			run(t.Context(), args, io.Discard, io.Discard)
		}
	})
}
