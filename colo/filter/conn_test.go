package filter_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}

// rw joins a reader and a writer to one connection.
type rw struct {
	io.Reader
	io.Writer
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func readAll(t testing.TB, c *filter.Conn) (frames []string, err error) {
	for {
		p, err := c.ReadPacket()
		if err != nil {
			return frames, err
		}
		frames = append(frames, string(p))
	}
}

// What QEMU 7.2.22's filter-mirror wrote for a packet of 22 bytes.
const hello = "48656c6c6f212066696c7465722d6d6972726f727e00" // "Hello! filter-mirror~\0"

// What a peer says of a virtio-net header is taken where there is such a header: up to 20 bytes, or 24.
func TestAHeaderOfALengthThatThereIsNotIsRefused(t *testing.T) {
	for n := range byte(40) {
		wire := append([]byte{0, 0, 0, 60, 0, 0, 0, n}, make([]byte, 60)...)
		c := filter.NewConn(rw{bytes.NewReader(wire), io.Discard}, filter.ConnConfig{VNetHdr: true})
		p, err := c.ReadPacket()
		switch ok := n <= 20 || n == 24; {
		case ok && (err != nil || len(p) != 60 || c.VNetHdrLen() != int(n)):
			t.Errorf("%d bytes: %d of 60, a header of %d, %v", n, len(p), c.VNetHdrLen(), err)
		case !ok && !errors.Is(err, filter.ErrFrame):
			t.Errorf("%d bytes: %v, want %v", n, err, filter.ErrFrame)
		}
	}
}

func TestFramesAreThoseOfQEMU(t *testing.T) {
	for _, c := range []struct {
		why  string
		cfg  filter.ConnConfig
		wire string
	}{
		{"without virtio-net headers a length is all there is", filter.ConnConfig{}, "00000016" + hello},
		{"with them, over a backend that has none, theirs is zero", filter.ConnConfig{VNetHdr: true}, "00000016 00000000" + hello},
		{"the length counts the virtio-net header", filter.ConnConfig{VNetHdr: true, VNetHdrLen: 10}, "00000016 0000000a" + hello},
	} {
		p, wire := unhex(t, hello), unhex(t, c.wire)
		var out bytes.Buffer
		w := filter.NewConn(rw{nil, &out}, c.cfg)
		if err := w.WritePacket(p); err != nil {
			t.Errorf("%s: %v", c.why, err)
		}
		if !bytes.Equal(out.Bytes(), wire) {
			t.Errorf("%s: wrote %x, want %x", c.why, out.Bytes(), wire)
		}
		for name, r := range map[string]io.Reader{
			"at once":       bytes.NewReader(wire),
			"byte by byte":  iotest.OneByteReader(bytes.NewReader(wire)),
			"end with data": iotest.DataErrReader(bytes.NewReader(wire)),
		} {
			conn := filter.NewConn(rw{r, nil}, c.cfg)
			got, err := conn.ReadPacket()
			if err != nil || !bytes.Equal(got, p) || conn.VNetHdrLen() != c.cfg.VNetHdrLen {
				t.Errorf("%s: read %s: %q, header %d, %v", c.why, name, got, conn.VNetHdrLen(), err)
			}
			if _, err := conn.ReadPacket(); err != io.EOF {
				t.Errorf("%s: read %s: then %v, want io.EOF", c.why, name, err)
			}
		}
		for n := 1; n < len(wire); n++ {
			conn := filter.NewConn(rw{bytes.NewReader(wire[:n]), nil}, c.cfg)
			if _, err := conn.ReadPacket(); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("%s: cut at %d: %v", c.why, n, err)
			}
		}
	}
}

func TestBadFramesAreErrorsThatSayWhere(t *testing.T) {
	vnet := filter.ConnConfig{VNetHdr: true}
	good := "00000002 4142"
	for _, c := range []struct {
		why  string
		cfg  filter.ConnConfig
		wire string
		want error
	}{
		{"one byte more than the greatest frame", filter.ConnConfig{}, "00011001", filter.ErrFrameTooBig},
		{"a length as great as can be", filter.ConnConfig{}, "ffffffff", filter.ErrFrameTooBig},
		{"a marker, where none was agreed upon", filter.ConnConfig{}, "434f4c4f 0000000000000001", filter.ErrFrameTooBig},
		{"length zero, which would abort a QEMU", filter.ConnConfig{}, "00000000", filter.ErrFrame},
		{"a virtio-net header longer than any", vnet, "00000040 00000015", filter.ErrFrame},
		{"a virtio-net header longer than the longest", vnet, "00000040 00000019", filter.ErrFrame},
		{"a virtio-net header longer than its frame", vnet, "00000009 0000000a", filter.ErrFrame},
		{"a negative header length", vnet, "00000009 ffffffff", filter.ErrFrame},
	} {
		g := good
		if c.cfg.VNetHdr {
			g = "00000002 00000000 4142"
		}
		wire := unhex(t, g+c.wire)
		at := int64(len(unhex(t, g)))
		conn := filter.NewConn(rw{bytes.NewReader(append(wire, make([]byte, 100)...)), nil}, c.cfg)
		frames, err := readAll(t, conn)
		var fe *filter.Error
		if len(frames) != 1 || !errors.Is(err, c.want) || !errors.As(err, &fe) || fe.Offset != at {
			t.Errorf("%s: %d frames, %v; want one and %v at %d", c.why, len(frames), err, c.want, at)
		}
		if _, again := conn.ReadPacket(); again != err {
			t.Errorf("%s: then %v, want the same error", c.why, again)
		}
	}
}

func TestGreatestFrameIsCarried(t *testing.T) {
	var wire bytes.Buffer
	conn := filter.NewConn(rw{&wire, &wire}, filter.ConnConfig{})
	p := bytes.Repeat([]byte{7}, filter.MaxFrame)
	for range 3 {
		if err := conn.WritePacket(p); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if got, err := conn.ReadPacket(); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	}
	for _, c := range []struct {
		n    int
		want error
	}{{filter.MaxFrame + 1, filter.ErrFrameTooBig}, {0, filter.ErrFrame}} {
		if err := conn.WritePacket(make([]byte, c.n)); !errors.Is(err, c.want) {
			t.Errorf("%d bytes: %v, want %v", c.n, err, c.want)
		}
	}
	if err := conn.WritePacket([]byte{1}); err != nil {
		t.Errorf("a frame that was refused harms nothing: %v", err)
	}
}

func TestMarkersStandBetweenTheFramesOfTheirEpochs(t *testing.T) {
	var wire bytes.Buffer
	var got []string
	cfg := filter.ConnConfig{Marks: true, OnMark: func(e uint64) error {
		if e == 3 {
			return io.ErrNoProgress
		}
		got = append(got, string(rune('0'+e)))
		return nil
	}}
	conn := filter.NewConn(rw{&wire, &wire}, cfg)
	conn.WriteMark(0)
	conn.WritePacket([]byte("a"))
	conn.WriteMark(1)
	conn.WriteMark(2)
	conn.WritePacket([]byte("b"))
	conn.WriteMark(3)
	if want := unhex(t, "434f4c4f 0000000000000000 00000001 61"); !bytes.HasPrefix(wire.Bytes(), want) {
		t.Errorf("on the wire: %x, want %x first", wire.Bytes(), want)
	}
	for {
		p, err := conn.ReadPacket()
		if err != nil {
			if err != io.ErrNoProgress {
				t.Errorf("%v, want the error of OnMark", err)
			}
			break
		}
		got = append(got, string(p))
	}
	if s := strings.Join(got, " "); s != "0 a 1 2 b" {
		t.Errorf("read %s", s)
	}
	if _, err := conn.ReadPacket(); err != io.ErrNoProgress {
		t.Errorf("then %v: the refusal of a marker is to stick", err)
	}
	wire.Reset()
	if err := filter.NewConn(rw{nil, &wire}, filter.ConnConfig{}).WriteMark(1); err != nil || wire.Len() > 0 {
		t.Errorf("a connection without markers wrote %x, %v", wire.Bytes(), err)
	}
}

func TestFailedWriteSticks(t *testing.T) {
	a, b := net.Pipe()
	b.Close()
	conn := filter.NewConn(a, filter.ConnConfig{Marks: true})
	err := conn.WritePacket([]byte("x"))
	if !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	if again := conn.WriteMark(1); again != err {
		t.Errorf("%v, want %v", again, err)
	}
	a.Close()
}

func TestConcurrentWritersDoNotMixFrames(t *testing.T) {
	a, b := net.Pipe()
	w := filter.NewConn(a, filter.ConnConfig{Marks: true})
	marks := 0
	r := filter.NewConn(b, filter.ConnConfig{Marks: true, OnMark: func(uint64) error { marks++; return nil }})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(g)}, 100)
			for range 100 {
				w.WritePacket(p)
				w.WriteMark(uint64(g))
			}
		})
	}
	go func() { wg.Wait(); a.Close() }()
	frames, err := readAll(t, r)
	if err != io.EOF || len(frames) != 400 || marks != 400 {
		t.Errorf("%d frames, %d markers, %v", len(frames), marks, err)
	}
	for _, f := range frames {
		if strings.Trim(f, f[:1]) != "" || len(f) != 100 {
			t.Fatalf("frame %x", f)
		}
	}
}

// loop gives the same bytes for ever.
type loop struct {
	data []byte
	at   int
}

func (l *loop) Read(p []byte) (int, error) {
	n := copy(p, l.data[l.at:])
	l.at = (l.at + n) % len(l.data)
	return n, nil
}

func TestFramesAreCarriedWithoutAllocation(t *testing.T) {
	var wire bytes.Buffer
	cfg := filter.ConnConfig{VNetHdr: true, Marks: true}
	w := filter.NewConn(rw{nil, &wire}, cfg)
	for n := range 100 {
		w.WritePacket(make([]byte, 1+n*15))
		w.WriteMark(uint64(n))
	}
	r := filter.NewConn(rw{&loop{data: wire.Bytes()}, io.Discard}, cfg)
	p := make([]byte, 1500)
	r.ReadPacket()
	r.WritePacket(p)
	if n := testing.AllocsPerRun(1000, func() {
		if _, err := r.ReadPacket(); err != nil {
			t.Fatal(err)
		}
		if err := r.WritePacket(p); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per frame", n)
	}
}

func FuzzConn(f *testing.F) {
	f.Add(unhex(f, "00000002 4142 434f4c4f 0000000000000007 00000001 43"), false, true)
	f.Add(unhex(f, "00000016 0000000a"+hello), true, false)
	f.Add(unhex(f, "00011001 00"), false, false)
	f.Fuzz(func(t *testing.T, wire []byte, vnet, marks bool) {
		var again bytes.Buffer
		cfg := filter.ConnConfig{VNetHdr: vnet, Marks: marks}
		w := filter.NewConn(rw{nil, &again}, cfg)
		cfg.OnMark = w.WriteMark
		r := filter.NewConn(rw{iotest.OneByteReader(bytes.NewReader(wire)), nil}, cfg)
		for {
			p, err := r.ReadPacket()
			if err != nil {
				var fe *filter.Error
				if err != io.EOF && !errors.As(err, &fe) {
					t.Fatalf("untyped error %v", err)
				}
				if err == io.EOF && again.Len() != len(wire) {
					t.Fatalf("%d of %d bytes were read, and no error", again.Len(), len(wire))
				}
				break
			}
			if len(p) == 0 || len(p) > filter.MaxFrame {
				t.Fatalf("frame of %d bytes", len(p))
			}
			if err := w.WriteVNetPacket(p, r.VNetHdrLen()); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.HasPrefix(wire, again.Bytes()) {
			t.Fatalf("%x was read, %x written", wire, again.Bytes())
		}
	})
}

func BenchmarkConnRead(b *testing.B) {
	var wire bytes.Buffer
	w := filter.NewConn(rw{nil, &wire}, filter.ConnConfig{})
	for range 1000 {
		w.WritePacket(make([]byte, 64))
	}
	r := filter.NewConn(rw{&loop{data: wire.Bytes()}, nil}, filter.ConnConfig{})
	bound := copying(64 + 4)
	b.ReportAllocs()
	b.SetBytes(64)
	for b.Loop() {
		if _, err := r.ReadPacket(); err != nil {
			b.Fatal(err)
		}
	}
	report(b, bound)
}

func BenchmarkConnWrite(b *testing.B) {
	w := filter.NewConn(rw{nil, io.Discard}, filter.ConnConfig{})
	p := make([]byte, 64)
	bound := copying(64 + 4)
	b.ReportAllocs()
	b.SetBytes(64)
	for b.Loop() {
		if err := w.WritePacket(p); err != nil {
			b.Fatal(err)
		}
	}
	report(b, bound)
}

// copying returns how many nanoseconds it takes to copy n bytes once, from a
// memory of some size to another: no packet that is moved can cost less.
func copying(n int) float64 {
	const packets = 1000
	src, dst := make([]byte, packets*n), make([]byte, packets*n)
	const rounds = 500
	begin := time.Now()
	for range rounds {
		for at := 0; at < len(src); at += n {
			copy(dst[at:at+n], src[at:at+n])
		}
	}
	return float64(time.Since(begin).Nanoseconds()) / (rounds * packets)
}

// report says how many packets there were, and how far that is from the bound.
func report(b *testing.B, bound float64) {
	ns := float64(b.Elapsed().Nanoseconds()) / float64(b.N)
	b.ReportMetric(1e3/ns, "Mpackets/s")
	b.ReportMetric(ns/bound, "x-copy")
}
