package lanes

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// Pages of three kinds: what compresses, what does not and looks so, and what does not
// but looks as if it did.
var (
	textPage  = bytes.Repeat([]byte("the quick brown fox jumps over the lazy dog. 01"), 88)[:ram.PageSize]
	noisePage = func() []byte {
		r := rand.New(rand.NewPCG(1, 2))
		p := make([]byte, ram.PageSize)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		return p
	}()
	hexPage = fmt.Append(nil, fmt.Sprintf("%x", noisePage[:ram.PageSize/2]))
)

// lined is a lane of a simulated time: a kernel's buffer, and a link that empties it.
type lined struct {
	buffer float64 // bytes
	wire   float64 // ns for each byte
	made   [ways]float64
	left   map[*byte]float64 // of a byte of the page that begins there, compressed

	now, free float64 // ns; free: when the link has sent all
	load      load
	section   int // pages after which all is waited for; 0: never
}

// goes sends a packet and returns what that took.
func (l *lined) goes(w way, pages [][]byte) outcome {
	size := float64(len(pages) * ram.PageSize)
	wire := size
	if w == packed {
		wire = 0
		for _, p := range pages {
			wire += ram.PageSize * l.left[&p[0]]
		}
	}
	made := size * l.made[w]
	l.now += made
	l.free = max(l.free, l.now) + wire*l.wire
	wrote := max(l.free-l.now-l.buffer*l.wire, wire/8) // 8 GB/s into the buffer
	l.now += wrote
	o := outcome{way: w, pages: len(pages), wire: int(wire), made: time.Duration(made), wrote: time.Duration(wrote), before: l.load}
	l.load = o.load()
	return o
}

// fixed always goes one way; mixed goes as a chooser says; each returns the time for so
// many pages of a guest, page i of which is kind(i).
func (l *lined) fixed(w way, n int, kind func(int) []byte) float64 {
	begun := l.now
	for i := 0; i < n; i += multifd.MaxPages {
		var pages [][]byte
		for k := i; k < i+multifd.MaxPages; k++ {
			pages = append(pages, kind(k))
		}
		l.goes(w, pages)
	}
	return l.now - begun
}

const guestPages = 16 << 10 // are sent again and again

func (l *lined) mixed(c *chooser, n int, kind func(int) []byte) (took float64, went [ways]int) {
	begun := l.now
	var fill [ways][][]byte
	var offsets [ways][]uint64
	for i := range n {
		off := uint64(i%guestPages) * ram.PageSize
		page := kind(i)
		w := c.way("ram", off, page)
		went[w]++
		fill[w], offsets[w] = append(fill[w], page), append(offsets[w], off)
		ends := l.section > 0 && i%l.section == l.section-1
		for w := range fill {
			if len(fill[w]) == multifd.MaxPages || ends && len(fill[w]) > 0 {
				c.saw(l.goes(way(w), fill[w]), "ram", offsets[w])
				fill[w], offsets[w] = fill[w][:0], offsets[w][:0]
			}
		}
		if ends {
			l.now, l.load = max(l.now, l.free), idle // the other side has it all
		}
	}
	return l.now - begun, went
}

const gigabit = 8.0 // ns for a byte

func newLined(wire, zips float64) *lined {
	return &lined{buffer: 256 << 10, wire: wire, made: [ways]float64{plain: 0.15, packed: zips},
		left: map[*byte]float64{&textPage[0]: 0.25, &noisePage[0]: 1.001, &hexPage[0]: 0.97}}
}

func allText(int) []byte { return textPage }

// Whatever the link, the compressor and the guest are, what is chosen takes at most
// little longer than the better of the two ways, and less than both where the guest has
// pages of both kinds.
func TestWhatPaysIsChosen(t *testing.T) {
	const zstd, zlib = 2.3, 6.4 // ns for a byte
	noise := func(int) []byte { return noisePage }
	hex := func(int) []byte { return hexPage }
	half := func(i int) []byte { return [][]byte{textPage, noisePage}[i%2] }
	clumps := func(i int) []byte { return [][]byte{textPage, hexPage}[i/512%2] }
	for i, x := range []struct {
		name       string
		wire, zips float64
		kind       func(int) []byte
		most       float64 // of the time of the better way
	}{
		{"100 Mbit/s, zlib, text", 10 * gigabit, zlib, allText, 1.05},
		{"1 Gbit/s, zstd, text", gigabit, zstd, allText, 1.05},
		{"1 Gbit/s, zlib, text", gigabit, zlib, allText, 1.05},
		{"10 Gbit/s, zstd, text", gigabit / 10, zstd, allText, 1.05},
		{"25 Gbit/s, zlib, text", gigabit / 25, zlib, allText, 1.05},
		{"a pipe, zlib, text", 0.01, zlib, allText, 1.05},
		{"1 Gbit/s, zstd, noise", gigabit, zstd, noise, 1.05},
		{"1 Gbit/s, zlib, noise", gigabit, 3 * zlib, noise, 1.05},
		{"1 Gbit/s, zlib, hex", gigabit, 3 * zlib, hex, 1.05},
		{"1 Gbit/s, zlib, text and noise", gigabit, zlib, half, 0.85},
		{"1 Gbit/s, zlib, text and hex", gigabit, zlib, clumps, 0.95},
		{"10 Gbit/s, zstd, text and noise", gigabit / 10, zstd, half, 1.05},
	} {
		t.Run(x.name, func(t *testing.T) {
			if testing.Short() && i%3 != 0 {
				t.Skip("short: one of three links")
			}
			const n = 8 * guestPages
			best := min(newLined(x.wire, x.zips).fixed(plain, n, x.kind), newLined(x.wire, x.zips).fixed(packed, n, x.kind))
			took, went := newLined(x.wire, x.zips).mixed(newChooser(1), n, x.kind)
			t.Logf("%.3f of the better way; %d plain, %d packed", took/best, went[plain], went[packed])
			if took > x.most*best {
				t.Errorf("it took %.3f of the better way, at most %.2f", took/best, x.most)
			}
		})
	}
}

// Where the compressor is about as fast as the link, little can be won whichever way a page
// goes, and once both have been seen no more than a tenth is lost: with any mixture of
// pages, one after the other or in clumps, over one lane or two.
func TestACompressorAsFastAsTheLinkCostsNoMoreThanATenth(t *testing.T) {
	cases := 0
	for _, lanes := range []int{1, 2} {
		for _, zips := range []float64{0.8, 0.95, 1.05, 1.15, 1.3} {
			for _, other := range [][]byte{noisePage, hexPage} {
				for _, share := range []int{4, 8, 12} { // of 16
					for _, clump := range []int{1, 128} {
						if cases++; testing.Short() && cases%7 != 1 {
							continue
						}
						kind := func(i int) []byte {
							if i%guestPages/clump%16*7%16 < share {
								return other
							}
							return textPage
						}
						l, c := newLined(gigabit, zips*gigabit), newChooser(lanes)
						best := min(l.fixed(plain, guestPages, kind), l.fixed(packed, guestPages, kind))
						l.mixed(c, 2*guestPages, kind)
						if took, went := l.mixed(c, guestPages, kind); took > 1.1*best {
							t.Errorf("it took %.3f of the better way over %d lanes: compressing takes %v of the link's time, %d of 16 pages are others (hex %t), in clumps of %d; %d plain, %d packed",
								took/best, lanes, zips, share, &other[0] == &hexPage[0], clump, went[plain], went[packed])
						}
					}
				}
			}
		}
	}
}

func TestALinkThatChangesIsNoticed(t *testing.T) {
	l, c := newLined(gigabit, 2.3), newChooser(1)
	for i, x := range []struct {
		wire float64
		want way
	}{{gigabit, packed}, {gigabit / 20, plain}, {gigabit, packed}, {3 * gigabit, packed}, {gigabit / 40, plain}, {10 * gigabit, packed}} {
		if testing.Short() && i > 2 {
			break
		}
		l.wire = x.wire
		l.mixed(c, 2*most, allText) // within so many
		_, went := l.mixed(c, guestPages, allText)
		if went[x.want] < guestPages*95/100 {
			t.Errorf("link %d: %d of %d pages went the right way", i, went[x.want], guestPages)
		}
	}
}

// Small checkpoints hide much of a link's rate in a socket's buffer.
func TestSmallSectionsSayEnoughOfALink(t *testing.T) {
	for _, x := range []struct {
		pages      int
		wire, zips float64
		want       way
	}{
		{80, 10 * gigabit, 2.3, packed}, {100, gigabit, 2.3, packed}, {128, gigabit, 2.3, packed}, {500, gigabit, 2.3, packed},
		{100, gigabit / 10, 2.3, plain}, {128, gigabit / 10, 6.4, plain}, {500, gigabit / 25, 2.3, plain}, {40, gigabit / 25, 2.3, plain},
	} {
		if testing.Short() && x.pages != 100 && x.pages != 500 {
			continue
		}
		l, c := newLined(x.wire, x.zips), newChooser(1)
		l.section = x.pages
		l.mixed(c, 2*guestPages, allText)
		_, went := l.mixed(c, 4*guestPages, allText)
		if share := float64(went[x.want]) / (4 * guestPages); share < 0.9 {
			t.Errorf("%+v: %.2f of the pages went that way", x, share)
		}
	}
}

// A page that did not shrink is not tried again the next times, ever more of them, and
// one that has become another is found to be so.
func TestAPageThatDidNotShrinkIsLeftAlone(t *testing.T) {
	for name, page := range map[string][]byte{"by its looks": noisePage, "by what came of it": hexPage} {
		t.Run(name, func(t *testing.T) {
			c := newChooser(1)
			l := newLined(gigabit, 2.3)
			l.mixed(c, guestPages, allText) // it pays in general
			send := func(page []byte) bool {
				w := c.best
				if !c.worth(c.mark("ram", 0), page) {
					return false
				}
				c.saw(l.goes(w, [][]byte{page}), "ram", []uint64{0})
				return true
			}
			var tried []int
			for i := range 200 {
				before := *c.mark("ram", 0)
				if send(page); before.skip == 0 {
					tried = append(tried, i)
				}
			}
			want := []int{0, 5, 14, 31, 64, 129, 194}
			if fmt.Sprint(tried) != fmt.Sprint(want) {
				t.Errorf("tried at %v, want %v", tried, want)
			}
			n := 0
			for !send(textPage) {
				n++
			}
			if n > 64 || *c.mark("ram", 0) != (mark{}) {
				t.Errorf("found to shrink after %d times, %+v", n, *c.mark("ram", 0))
			}
		})
	}
}

func TestNoiseIsKnownByItsLooks(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	share := func(noise int) []byte {
		p := bytes.Clone(textPage)
		for i := range p {
			if i%100 < noise {
				p[i] = byte(r.Uint32())
			}
		}
		return p
	}
	records := make([]byte, ram.PageSize) // 8 bytes, 4 of them noise
	for i := range records {
		if i%8 < 4 {
			records[i] = byte(r.Uint32())
		}
	}
	for name, x := range map[string]struct {
		page []byte
		want bool
	}{"noise": {noisePage, true}, "95 % noise": {share(95), true}, "half noise": {share(50), false}, "text": {textPage, false},
		"hex": {hexPage, false}, "records": {records, false}, "zeros": {make([]byte, ram.PageSize), false}} {
		if got := random(x.page); got != x.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// What is chosen arrives, in packets of either kind.
func TestPagesArriveHoweverTheyWereChosen(t *testing.T) {
	x := newRig(t, 2, func(s *SenderConfig, _ *ReceiverConfig) { s.Method, s.Choose = multifd.Zlib, true })
	kinds := [][]byte{textPage, noisePage, hexPage}
	for n := range 4 {
		sent := make(chan error, 1)
		go func() {
			for i := range 1000 {
				if err := x.s.SendPage([]string{"a", "b"}[i/600], uint64(i)*ram.PageSize, kinds[(n+i)%3]); err != nil {
					sent <- err
					return
				}
			}
			sent <- x.s.Sync()
		}()
		if err := x.v.Begin(); err != nil {
			t.Fatal(err)
		}
		if err := x.v.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		for i := range 1000 {
			if !bytes.Equal(x.pages[fmt.Sprint([]string{"a", "b"}[i/600], i*ram.PageSize)], kinds[(n+i)%3]) {
				t.Fatalf("section %d: page %d is another", n, i)
			}
		}
	}
	if seen := x.s.pick.seen; seen != [ways]bool{true, true} {
		t.Errorf("tried: %v", seen)
	}
}

func TestChoosingAllocatesNothing(t *testing.T) {
	s, err := NewSender(SenderConfig{Conns: []io.WriteCloser{sink{}}, Method: multifd.Zlib, Choose: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	defer s.Close()
	kinds := [][]byte{textPage, noisePage}
	section := func() {
		for i := range 1000 {
			if err := s.SendPage("a", uint64(i)*ram.PageSize, kinds[i%2]); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
	}
	section()
	if n := testing.AllocsPerRun(50, section); n > 0 {
		t.Errorf("%v allocations a section", n)
	}
}
