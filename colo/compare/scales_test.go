package compare_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/internal/packet"
)

// synAck is a SYN|ACK of the guest, which scales by shift, behind a virtio-net header of vnet
// bytes.
func synAck(port uint16, shift byte, vnet int) []byte {
	f := wireSegment(port, 1000, 501, packet.SYN|packet.ACK, string([]byte{packet.OptWScale, 3, shift, packet.OptNop}), "")
	return append(make([]byte, vnet), f...)
}

// scalesOf returns the scales in a table by the client's port.
func scalesOf(t *testing.T, s *compare.Scales) map[uint16]byte {
	t.Helper()
	table := s.Append(nil)
	if err := new(compare.Scales).Load(table); err != nil {
		t.Error(err)
	}
	m := map[uint16]byte{}
	for r := range slices.Chunk(table, compare.ScaleRecord) {
		m[binary.BigEndian.Uint16(r[10:])] = r[44]
	}
	return m
}

func TestAScaleIsLearntInWhateverASYNComes(t *testing.T) {
	ip6 := func(next string, f []byte) []byte {
		b := append(append(make([]byte, 12), 0x86, 0xdd), 0x60, 0, 0, 0, 0, byte(len(next)+len(f)-34), packet.ProtoTCP, 64)
		if next != "" {
			b[20] = packet.ProtoDestOpts
		}
		return append(append(append(append(b, make([]byte, 31)...), 2), next...), f[34:]...)
	}
	plain := synAck(9, 7, 0)
	options := slices.Insert(bytes.Clone(plain), 34, 1, 1, 1, 0)
	options[14], options[17] = 0x46, options[17]+4
	tagged := func(tags string) []byte { return slices.Concat(plain[:12], []byte(tags), plain[12:]) }
	for why, c := range map[string]struct {
		f    []byte
		vnet int
		is   bool
	}{
		"plain":                            {plain, 0, true},
		"behind a virtio-net header":       {synAck(9, 7, 12), 12, true},
		"options of IPv4":                  {options, 0, true},
		"IPv6":                             {ip6("", plain), 0, true},
		"IPv6 with options":                {ip6("\x06\x00\x01\x04\x00\x00\x00\x00", plain), 0, true},
		"a VLAN":                           {tagged("\x81\x00\x00\x07"), 0, true},
		"two VLANs":                        {tagged("\x81\x00\x00\x07\x81\x00\x00\x08"), 0, true},
		"three, of which two are known":    {tagged("\x81\x00\x00\x07\x81\x00\x00\x08\x81\x00\x00\x09"), 0, false},
		"data":                             {wireSegment(9, 1000, 501, wireACK, wireWindow7, "data"), 0, false},
		"a RST, whose SYN nobody looks at": {wireSegment(9, 1000, 501, wireSYN|wireRST, wireWindow7, ""), 0, false},
		"a SYN that is not answered":       {wireSegment(9, 1000, 0, wireSYN, wireWindow7, ""), 0, false},
		"a fragment":                       {wireIPv4(6, 0x2000, plain[34:]), 0, false},
		"cut":                              {plain[:50], 0, false},
		"shorter than its virtio header":   {plain[:10], 12, false},
		"with a header of less than none":  {plain, -1, false},
		"nothing":                          {nil, 0, false},
	} {
		var s compare.Scales
		s.ToGuest(c.f, c.vnet)
		s.FromGuest(c.f, c.vnet)
		if got := len(s.Append(nil)) == compare.ScaleRecord; got != c.is {
			t.Errorf("%s: it is learnt: %t", why, got)
		}
	}
}

// What finds no room is unknown, and nothing that is known is of an older connection.
func TestATableOfScalesThatIsFullHasTheLatest(t *testing.T) {
	var s compare.Scales
	for port := range uint16(compare.MaxScales) {
		s.FromGuest(synAck(port, 3, 0), 0)
	}
	for n := range uint16(1000) {
		s.FromGuest(synAck(compare.MaxScales+n, 4, 0), 0)
		if s.Len() != compare.MaxScales {
			t.Fatalf("%d connections", s.Len())
		}
		if n%100 == 0 && scalesOf(t, &s)[compare.MaxScales+n] != 4 {
			t.Error("the latest is unknown")
		}
	}
	for port := range uint16(compare.MaxScales) { // each again
		s.FromGuest(synAck(port, 5, 0), 0)
	}
	for port, scale := range scalesOf(t, &s) {
		if port < compare.MaxScales && scale != 5 {
			t.Fatalf("%d is scaled by %d", port, scale)
		}
	}
}

func TestATableOfScalesIsTakenAsFarAsThereIsRoom(t *testing.T) {
	var s compare.Scales
	for port := range uint16(10) {
		s.FromGuest(synAck(port, 3, 0), 0)
	}
	c := compare.NewComparer(compare.Config{MaxConns: 4})
	c.AdoptScales(&s)
	if n := len(c.AppendScales(nil)); n != 4*compare.ScaleRecord {
		t.Errorf("%d bytes", n)
	}
	c = compare.NewComparer(compare.Config{})
	if err := c.WritePacket(synAck(3, 9, 0)); err != nil {
		t.Fatal(err)
	}
	c.AdoptScales(&s)
	var got compare.Scales
	if err := got.Load(c.AppendScales(nil)); err != nil {
		t.Fatal(err)
	}
	if m := scalesOf(t, &got); len(m) != 10 || m[3] != 9 || m[4] != 3 {
		t.Errorf("%v: what it has seen itself counts", m)
	}
}

func TestATableOfMoreScalesThanAreKeptIsNotSaved(t *testing.T) {
	c := compare.NewComparer(compare.Config{MaxConns: 2 * compare.MaxScales})
	for port := range uint16(compare.MaxScales + 10) {
		if err := c.WritePacket(synAck(port, 3, 0)); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(c.AppendScales(nil)); n != compare.MaxScales*compare.ScaleRecord {
		t.Errorf("%d bytes", n)
	}
}

func TestATableOfScalesIsNotLoadedInPart(t *testing.T) {
	var s compare.Scales
	s.FromGuest(synAck(1, 3, 0), 0)
	s.FromGuest(synAck(2, 3, 0), 0)
	table := s.Append(nil)
	for n := range len(table) {
		var got compare.Scales
		got.FromGuest(synAck(3, 3, 0), 0)
		err := got.Load(table[:n])
		switch {
		case n%compare.ScaleRecord == 0 && (err != nil || got.Len() != n/compare.ScaleRecord):
			t.Errorf("%d bytes: %v", n, err)
		case n%compare.ScaleRecord != 0 && (!errors.Is(err, compare.ErrScales) || got.Len() != 1 || scalesOf(t, &got)[3] != 3):
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if err := s.Load(make([]byte, (compare.MaxScales+1)*compare.ScaleRecord)); !errors.Is(err, compare.ErrScales) {
		t.Error(err)
	}
}

func TestWhatBeginsAfterATableWasLoadedCountsInItsPlace(t *testing.T) {
	var saved, s compare.Scales
	for port := range uint16(4) {
		saved.FromGuest(synAck(port, 3, 0), 0)
	}
	table := saved.Append(nil)
	again := bytes.Clone(table[:compare.ScaleRecord])
	again[compare.ScaleRecord-1] = 9 // of a connection that is there twice the first counts
	if err := s.Load(append(table, again...)); err != nil {
		t.Fatal(err)
	}
	s.FromGuest(synAck(1, 8, 0), 0)
	call := synAck(2, 7, 0)
	call[47] = packet.SYN // there is no answer yet
	s.FromGuest(call, 0)
	if m := scalesOf(t, &s); s.Len() != 4 || len(m) != 3 || m[0] != 3 || m[1] != 8 || m[3] != 3 {
		t.Errorf("%d: %v", s.Len(), m)
	}
	c := compare.NewComparer(compare.Config{})
	c.AdoptScales(&s)
	var got compare.Scales
	if err := got.Load(c.AppendScales(nil)); err != nil {
		t.Fatal(err)
	}
	if m := scalesOf(t, &got); len(m) != 3 || m[0] != 3 || m[1] != 8 || m[3] != 3 {
		t.Errorf("adopted: %v", m)
	}
	// So many that one has to be forgotten: it may be one of the table's.
	for port := range uint16(compare.MaxScales) {
		s.FromGuest(synAck(port, 5, 0), 0)
	}
	for n := range uint16(100) {
		s.FromGuest(synAck(compare.MaxScales+n, 5, 0), 0)
	}
	for port, scale := range scalesOf(t, &s) {
		if scale != 5 {
			t.Errorf("%d: %d", port, scale)
		}
	}
	if s.Reset(); s.Len() != 0 {
		t.Error("it has something after Reset")
	}
}

func TestScalesTakeNoMemoryForWhatBeginsNothing(t *testing.T) {
	var s compare.Scales
	s.FromGuest(synAck(1, 3, 0), 0)
	data := wireSegment(1, 1001, 501, wireACK, wireTimes(1, 2), strings.Repeat("x", 1000))
	again := synAck(1, 3, 0)
	if n := testing.AllocsPerRun(100, func() {
		s.FromGuest(data, 0)
		s.ToGuest(data, 0)
		s.FromGuest(again, 0)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkScales(b *testing.B) {
	var s compare.Scales
	for port := range uint16(1000) {
		s.FromGuest(synAck(port, 3, 0), 0)
	}
	data := wireSegment(1, 1001, 501, wireACK, wireTimes(1, 2), strings.Repeat("x", 1000))
	b.Run("look", func(b *testing.B) {
		for b.Loop() {
			s.FromGuest(data, 0)
		}
	})
	c := compare.NewComparer(compare.Config{})
	c.AdoptScales(&s)
	var table []byte
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			table = c.AppendScales(table[:0])
		}
	})
	b.Run("load", func(b *testing.B) {
		var s compare.Scales
		for b.Loop() {
			if err := s.Load(table); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Who sends a checkpoint may send anything.
func TestATableOfScalesHasOnlyWhatAWindowMayHave(t *testing.T) {
	var kept compare.Scales
	kept.FromGuest(ackSeg{seq: 99, ack: 1000, win: 6400, flags: packet.SYN | packet.ACK, opts: wireMSS + wireWindow7}.frame().Data, 0)
	record := kept.Append(nil)
	if len(record) != compare.ScaleRecord {
		t.Fatalf("%d bytes", len(record))
	}
	with := func(at int, b byte) []byte {
		r := bytes.Clone(record)
		r[at] = b
		return r
	}
	for what, c := range map[string]struct {
		table []byte
		ok    bool
	}{
		"as it is":                 {record, true},
		"the greatest scale":       {with(compare.ScaleRecord-1, 14), true},
		"a greater one":            {with(compare.ScaleRecord-1, 15), false},
		"another kind":             {with(0, 5), false},
		"a byte behind an address": {with(16, 1), false},
		"cut":                      {record[:compare.ScaleRecord-1], false},
		"as many as there may be":  {bytes.Repeat(record, compare.MaxScales), true},
		"one more":                 {bytes.Repeat(record, compare.MaxScales+1), false},
	} {
		var s compare.Scales
		if err := s.Load(record); err != nil {
			t.Fatal(err)
		}
		if err := s.Load(c.table); (err == nil) != c.ok || err != nil && !errors.Is(err, compare.ErrScales) {
			t.Errorf("%s: %v", what, err)
		} else if err != nil && !bytes.Equal(s.Append(nil), record) {
			t.Errorf("%s: it has changed what was there", what)
		}
	}
}
