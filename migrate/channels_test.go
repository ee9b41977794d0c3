package migrate

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/internal/zstd"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// stored is a compressor that makes zstd of what it does not compress: one frame,
// with a raw block for each packet.
type stored struct{ begun bool }

func (s *stored) Compress(dst, pages []byte) ([]byte, error) {
	if !s.begun {
		s.begun = true
		dst = append(dst, 0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58) // no size, a window of 2 MiB
	}
	for len(pages) > 0 {
		part := pages[:min(len(pages), 128<<10)]
		pages = pages[len(part):]
		n := uint32(len(part)) << 3 // raw, not the last
		dst = append(dst, byte(n), byte(n>>8), byte(n>>16))
		dst = append(dst, part...)
	}
	return dst, nil
}

// withZstd knows what a host may bring.
func withZstd(c *Channels) {
	c.Compressor = func(m multifd.Method) (Compressor, error) {
		if m == multifd.Zstd {
			return new(stored), nil
		}
		return multifd.CompressZlib(m)
	}
	c.Decoder = func(m multifd.Method) (multifd.Decoder, error) {
		if m == multifd.Zstd {
			return new(zstd.Decoder), nil
		}
		return multifd.DecodeZlib(m)
	}
}

// newParallel prepares a migration by precopy with channels, that break as planned.
func newParallel(t testing.TB, seed uint64, method multifd.Method, flows ...colotest.Flow) *move {
	t.Helper()
	m := newPrecopy(t, seed)
	var s, d Channels
	for _, f := range flows {
		a, b := colotest.Pipe(f, colotest.Flow{})
		s.Conns, d.Conns = append(s.Conns, a), append(d.Conns, b)
	}
	s.Method = method
	withZstd(&s)
	withZstd(&d)
	m.source.cfg.Channels, m.destination.cfg.Channels = s, d
	return m
}

func TestAGuestArrivesOverChannels(t *testing.T) {
	for _, method := range []multifd.Method{multifd.None, multifd.Zlib, multifd.Zstd} {
		for n := 1; n <= 3; n++ {
			t.Run(fmt.Sprintf("%d channels, %v", n, method), func(t *testing.T) {
				m := newParallel(t, uint64(n), method, make([]colotest.Flow, n)...)
				m.run()
				m.arrived()
				var carried int64
				for _, c := range m.source.cfg.Channels.Conns {
					carried += c.(*colotest.Conn).Sent().Bytes
				}
				if main := m.sent[0][0].Bytes; main > 6000 || carried < 60*page/2 && method != multifd.Zlib {
					t.Errorf("%d bytes in the stream, %d in the channels", main, carried)
				}
				if s := m.source.Stats.Memory; s.Pages == 0 || s.Bytes == 0 {
					t.Errorf("%+v", s)
				}
			})
		}
	}
}

// A channel breaks in every packet and at many bytes: the guest is whole on one
// side, and never runs on both.
func TestAChannelThatBreaksSpoilsTheMigrationAndNotTheGuest(t *testing.T) {
	whole := newParallel(t, 6, multifd.None, colotest.Flow{}, colotest.Flow{})
	whole.run()
	whole.arrived()
	arrived, n := 0, 0
	for lane := range 2 {
		traffic := whole.source.cfg.Channels.Conns[lane].(*colotest.Conn).Sent()
		step := traffic.Bytes/25 + 1
		for p := range traffic.Points(func(i int64) bool { return i%step == 0 || i > traffic.Bytes-1400 && i%199 == 0 || i < 64 && i%13 == 0 }) {
			if n++; p.Op == colotest.Read || testing.Short() && n%5 != 0 {
				continue
			}
			flows := make([]colotest.Flow, 2)
			flows[lane] = colotest.Flow{Break: p, Drop: p.N%2 == 0}
			m := newParallel(t, 6, multifd.None, flows...)
			m.run()
			if m.settled(p) { // it was not reached: the channels share the pages as they like
				arrived++
			}
		}
	}
	t.Logf("%d arrived", arrived)
}

func TestTheMainStreamThatBreaksEndsTheChannels(t *testing.T) {
	m := newPrecopy(t, 7, [2]colotest.Flow{{Break: colotest.Point{Op: colotest.Byte, N: 300}}})
	p := newParallel(t, 7, multifd.None, colotest.Flow{}, colotest.Flow{})
	m.source.cfg.Channels, m.destination.cfg.Channels = p.source.cfg.Channels, p.destination.cfg.Channels
	m.run()
	m.oneSide()
}

// liesAbout writes one packet in place of a channel's first one.
type liesAbout struct {
	*colotest.Conn
	lie  []byte
	told bool
}

func (l *liesAbout) Write(p []byte) (int, error) {
	if !l.told && len(p) == 64 { // the channel's first packet
		l.told = true
		if _, err := l.Conn.Write(p); err != nil {
			return 0, err
		}
		_, err := l.Conn.Write(l.lie)
		return len(p), err
	}
	return l.Conn.Write(p)
}

func packetBytes(t testing.TB, p multifd.Packet) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := qemufile.NewWriter(&buf)
	p.Put(w)
	check(t, w.Flush())
	return buf.Bytes()
}

func TestAChannelThatLiesIsRefused(t *testing.T) {
	one := make([]byte, page)
	bad := packetBytes(t, multifd.Packet{Block: "pc.ram", Normal: []uint64{0}, Data: one})
	binary.BigEndian.PutUint32(bad, 7)
	for _, x := range []struct {
		name string
		lie  []byte
		want error
	}{
		{"a block that is none", packetBytes(t, multifd.Packet{Block: "rom", Normal: []uint64{0}, Data: one}), ram.ErrUnknownBlock},
		{"a page beyond the block", packetBytes(t, multifd.Packet{Block: "pc.ram", Normal: []uint64{96 * page}, Data: one}), ram.ErrOffset},
		{"a zero page beyond the block", packetBytes(t, multifd.Packet{Block: "pc.ram", Zero: []uint64{1 << 40}}), ram.ErrOffset},
		{"no packet", bad, multifd.ErrMagic},
		{"a method that nobody knows", packetBytes(t, multifd.Packet{Method: multifd.QPL, Block: "pc.ram", Normal: []uint64{0}, Data: one}), multifd.ErrMethod},
		{"what is no zlib", packetBytes(t, multifd.Packet{Method: multifd.Zlib, Block: "pc.ram", Normal: []uint64{0}, Data: one}), multifd.ErrDecode},
		{"devices", packetBytes(t, multifd.Packet{Device: &multifd.Device{Name: "x"}, Data: one}), nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := newParallel(t, 3, multifd.None, colotest.Flow{}, colotest.Flow{})
			c := &m.source.cfg.Channels
			c.Conns[1] = &liesAbout{Conn: c.Conns[1].(*colotest.Conn), lie: x.lie}
			m.run()
			if m.dstErr == nil || x.want != nil && !errors.Is(m.dstErr, x.want) {
				t.Errorf("the destination: %v", m.dstErr)
			}
			m.oneSide()
			if running, _ := m.src.runs(); !running {
				t.Errorf("the source's guest does not run: %v", m.srcErr)
			}
		})
	}
}

func TestChannelsThatDoNotFitAreRefused(t *testing.T) {
	t.Run("the same number twice", func(t *testing.T) {
		m := newParallel(t, 3, multifd.None, colotest.Flow{}, colotest.Flow{})
		c := &m.source.cfg.Channels
		c.Conns[1] = &renumbered{Conn: c.Conns[1].(*colotest.Conn)}
		m.run()
		if !errors.Is(m.dstErr, multifd.ErrChannel) {
			t.Errorf("the destination: %v", m.dstErr)
		}
		m.oneSide()
	})
	t.Run("another guest's", func(t *testing.T) {
		m := newParallel(t, 3, multifd.None, colotest.Flow{})
		m.source.cfg.Channels.UUID[0] = 1
		m.run()
		if !errors.Is(m.dstErr, multifd.ErrUUID) {
			t.Errorf("the destination: %v", m.dstErr)
		}
		m.oneSide()
	})
	t.Run("no compressor", func(t *testing.T) {
		m := newParallel(t, 3, multifd.Zstd, colotest.Flow{}, colotest.Flow{})
		m.source.cfg.Channels.Compressor = nil
		m.run()
		if !errors.Is(m.srcErr, multifd.ErrMethod) {
			t.Errorf("the source: %v", m.srcErr)
		}
		m.oneSide()
	})
	t.Run("postcopy", func(t *testing.T) {
		p := newParallel(t, 3, multifd.None, colotest.Flow{})
		m := newMove(t, 3)
		m.source.cfg.Channels, m.destination.cfg.Channels = p.source.cfg.Channels, p.destination.cfg.Channels
		m.run()
		if m.srcErr == nil || m.dstErr == nil {
			t.Errorf("%v, %v", m.srcErr, m.dstErr)
		}
		m.oneSide()
	})
	t.Run("too many", func(t *testing.T) {
		m := newParallel(t, 3, multifd.None, make([]colotest.Flow, 256)...)
		m.run()
		if m.srcErr == nil || m.dstErr == nil {
			t.Errorf("%v, %v", m.srcErr, m.dstErr)
		}
		m.oneSide()
	})
}

// renumbered is a channel that says that it is channel 0.
type renumbered struct {
	*colotest.Conn
	told bool
}

func (r *renumbered) Write(p []byte) (int, error) {
	if !r.told {
		r.told = true
		p = bytes.Clone(p)
		p[24] = 0
	}
	return r.Conn.Write(p)
}

// FuzzChannel gives a destination a channel that no source has: it returns, and
// places nothing outside of the guest.
func FuzzChannel(f *testing.F) {
	one := make([]byte, page)
	var init bytes.Buffer
	w := qemufile.NewWriter(&init)
	multifd.Init{}.Put(w)
	check(f, w.Flush())
	add := func(packets ...multifd.Packet) {
		b := bytes.Clone(init.Bytes())
		for _, p := range packets {
			b = append(b, packetBytes(f, p)...)
		}
		f.Add(b)
	}
	sync := multifd.Packet{Sync: true}
	add(sync, multifd.Packet{Block: "pc.ram", Normal: []uint64{0, page}, Data: append(one, one...)}, sync)
	add(multifd.Packet{Block: "vga.vram", Zero: []uint64{page}}, sync, sync, sync)
	add(multifd.Packet{Method: multifd.Zlib, Block: "pc.ram", Normal: []uint64{0}, Data: []byte{0x78, 0x01}}, sync)
	add()
	add(multifd.Packet{Method: multifd.Zlib, Sync: true}, sync)
	var stream bytes.Buffer
	sw := qemufile.NewWriter(&stream)
	for range 4 {
		sw.PutBE64(0x10)
	}
	check(f, sw.Flush())
	f.Fuzz(func(t *testing.T, p []byte) {
		g := newGuest(t)
		var err error
		g.lazy, err = ram.NewLazy(g.blocks)
		check(t, err)
		c := Channels{Conns: []Conn{ended{bytes.NewReader(p)}}}
		v := newReceiver(context.Background(), &c, g.lazy, func(error) {})
		g.lazy.SetBarrier(v.barrier)
		r := qemufile.NewReader(bytes.NewReader(stream.Bytes()))
		loaded := 0
		for err == nil && loaded < 4 {
			if err = g.lazy.LoadState(r, ram.Version); err == nil {
				loaded++
			}
		}
		if syncs := lasts(p); loaded > syncs {
			t.Fatalf("%d sections were loaded with %d packets that end one", loaded, syncs)
		}
		_ = v.stop()
		check(t, g.lazy.Close())
	})
}

// lasts counts the packets that end a section, whatever else their flags say.
func lasts(p []byte) (n int) {
	head := []byte{0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1}
	for at := range len(p) - len(head) - 3 {
		if bytes.HasPrefix(p[at:], head) && p[at+len(head)+3]&1 != 0 {
			n++
		}
	}
	return n
}

// ended is a connection that brings what was recorded and ends.
type ended struct{ io.Reader }

func (ended) Write(p []byte) (int, error) { return len(p), nil }
func (ended) Close() error                { return nil }

func TestTheEndOfTheContextEndsTheChannels(t *testing.T) {
	m := newParallel(t, 3, multifd.None, colotest.Flow{}, colotest.Flow{})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	a, b := colotest.Pipe(colotest.Flow{}, colotest.Flow{})
	ended := make(chan struct{})
	m.src.onPause = func() {
		cancel()
		<-ended // or the guest may be there before anybody has heard
	}
	go func() {
		defer close(ended)
		m.dstErr = m.destination.Run(ctx, b)
	}()
	m.srcErr = m.source.Run(ctx, a)
	<-ended
	if m.srcErr == nil || m.dstErr == nil {
		t.Errorf("%v, %v", m.srcErr, m.dstErr)
	}
	m.oneSide()
}

// rest is a connection that brings what was recorded, and then ends with an error, or
// nothing until it is closed.
type rest struct {
	io.Reader
	end    error // nil: nothing comes
	closed chan struct{}
}

func (r rest) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err == nil {
		return n, nil
	}
	if r.end == nil {
		<-r.closed
		return 0, io.ErrClosedPipe
	}
	return n, r.end
}

func (r rest) Write(p []byte) (int, error) {
	<-r.closed
	return 0, io.ErrClosedPipe
}

func (r rest) Close() error {
	select {
	case <-r.closed:
	default:
		close(r.closed)
	}
	return nil
}

// section returns the bytes of a channel for a section without pages.
func section(t testing.TB, syncs int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	multifd.Init{}.Put(w)
	for range syncs {
		(&multifd.Packet{Sync: true}).Put(w)
	}
	check(t, w.Flush())
	return b.Bytes()
}

// empty returns a packet of nothing, which a QEMU sends after a section whose end it has
// told with the last pages.
func empty(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	(&multifd.Packet{}).Put(w)
	check(t, w.Flush())
	return b.Bytes()
}

func TestAChannelThatIsCutWithinASectionBreaksTheStream(t *testing.T) {
	name := newGuest(t).blocks[0].Name
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	(&multifd.Packet{Block: name, Normal: []uint64{0}, Data: make([]byte, page)}).Put(w)
	check(t, w.Flush())
	for _, cut := range []int{b.Len(), b.Len() - 1, 14} {
		g := newGuest(t)
		memory, err := ram.NewLazy(g.blocks)
		check(t, err)
		c := Channels{Conns: []Conn{rest{Reader: bytes.NewReader(append(section(t, 1), b.Bytes()[:cut]...)), end: io.EOF, closed: make(chan struct{})}}}
		v := newReceiver(t.Context(), &c, memory, func(error) {})
		check(t, v.barrier())
		v.group.Wait() // it has ended
		if err := v.barrier(); err == nil {
			t.Errorf("after %d bytes of a packet of %d the section has ended", cut, b.Len())
		}
		// Pages that came belong to a section, which has not ended.
		if err := v.stop(); (err == nil) != (cut < b.Len()) || errors.Is(err, errGone) {
			t.Errorf("at the end of the stream, after %d bytes of a packet of %d: %v", cut, b.Len(), err)
		}
	}
}

func TestAChannelMayEndWithoutABye(t *testing.T) {
	reset := errors.New("reset")
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, reset} {
		for _, more := range [][]byte{nil, empty(t), empty(t)[:14], append(empty(t), 0x11)} {
			t.Run(fmt.Sprintf("%v after %d bytes", end, len(more)), func(t *testing.T) {
				g := newGuest(t)
				memory, err := ram.NewLazy(g.blocks)
				check(t, err)
				c := Channels{Conns: []Conn{rest{Reader: bytes.NewReader(append(section(t, 1), more...)), end: end, closed: make(chan struct{})}}}
				v := newReceiver(t.Context(), &c, memory, func(error) {})
				check(t, v.barrier())
				v.group.Wait() // it has ended
				if err := v.barrier(); !errors.Is(err, errGone) || end == reset && !errors.Is(err, reset) {
					t.Errorf("the next section: %v", err)
				}
				if err := v.stop(); err != nil {
					t.Errorf("after the stream: %v", err)
				}
			})
		}
	}
}

func TestAChannelThatIsStuckIsToldApart(t *testing.T) {
	t.Run("nothing comes", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGuest(t)
			memory, err := ram.NewLazy(g.blocks)
			check(t, err)
			c := Channels{Conns: []Conn{rest{Reader: bytes.NewReader(section(t, 1)), closed: make(chan struct{})}}}
			v := newReceiver(t.Context(), &c, memory, func(error) {})
			check(t, v.barrier())
			if err := v.barrier(); !errors.Is(err, ErrChannelStuck) {
				t.Errorf("a section that does not end in the channel: %v", err)
			}
			check(t, v.stop())
		})
	})
	t.Run("nothing is taken", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := Channels{Conns: []Conn{rest{closed: make(chan struct{})}, rest{closed: make(chan struct{})}}}
			failed := 0
			s, err := newSender(t.Context(), &c, func() { failed++ })
			check(t, err)
			if err := s.Sync(); !errors.Is(err, ErrChannelStuck) {
				t.Errorf("Sync = %v", err)
			}
			s.close()
			if failed != 1 {
				t.Errorf("the stream was ended %d times", failed)
			}
		})
	})
}

func TestARateOfAPassThatTookNoTimeIsANumber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(Source)
		x := &exchange{wire: &wire{w: qemufile.NewWriter(io.Discard)}}
		for _, sent := range []uint64{0, 1 << 20} {
			if r := s.rate(x, time.Now(), sent); math.IsNaN(r) || math.IsInf(r, 0) {
				t.Errorf("%d bytes in no time: %v", sent, r)
			}
		}
	})
}
