package compare_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
)

// A wild makes up courses: two guests that say parts of one stream, and acknowledge parts of
// another, in any order, with checkpoints between.
type wild struct {
	*rand.Rand
	b       strings.Builder
	marked  bool   // a mark is neither received nor heard
	p, s    uint32 // the ends of what the guests have said
	ts      uint32
	stamped bool   // with timestamps
	calm    bool   // the guests keep together, and what they repeat is lost on its way
	ack     uint32 // in such a course, how far the guests have acknowledged
	acked   uint32 // and the client
}

func (w *wild) line(format string, args ...any) { fmt.Fprintf(&w.b, format+"\n", args...) }

func (w *wild) one(n int) bool { return w.IntN(n) == 0 }

// text is what is in a place of the stream.
func text(from, to uint32) string {
	var b strings.Builder
	for ; from < to; from++ {
		b.WriteByte('a' + byte(from%23))
	}
	return b.String()
}

// says has a guest say something, which begins near end, and returns the new end.
func (w *wild) says(who string, end uint32) uint32 {
	from, n := end, uint32(w.IntN(9))
	if w.one(4) {
		from -= min(uint32(w.IntN(14)), from)
	} else if w.one(12) && !w.calm {
		from += uint32(w.IntN(6))
	}
	flags, words := "A", ""
	data := text(from, from+n)
	if !w.calm && w.one(15) && n > 0 {
		data = strings.ToUpper(data)
	}
	switch {
	case w.calm:
	case w.one(25):
		flags = "FA"
	case w.one(60):
		flags = "RA"
	case w.one(40) && n > 0:
		flags, words = "UA", fmt.Sprint(" urg ", 1+w.IntN(int(n)))
	}
	ack := 501 + 10*uint32(w.IntN(12))
	if w.calm {
		w.ack += 10 * uint32(w.IntN(2))
		ack = 501 + w.ack - 10*min(w.ack/10, uint32(w.IntN(3)))
	}
	if w.one(4) {
		words += fmt.Sprint(" win ", 900+w.IntN(200))
	}
	if w.stamped {
		w.ts += uint32(w.IntN(3))
		words += fmt.Sprint(" ts ", w.ts)
	}
	if w.one(5) && n == 0 {
		at := ack + 10*uint32(1+w.IntN(3))
		words += fmt.Sprintf(" sack %d-%d", at, at+10*uint32(1+w.IntN(3)))
	}
	if w.one(40) && !w.calm {
		words += " md5 1"
	}
	w.line("%s %s %d %d%s %s", who, flags, 1001+from, ack, words, data)
	return max(end, from+n)
}

func (w *wild) step() {
	switch n := w.IntN(100); {
	case w.calm && n >= 74 && n < 84 && min(w.p, w.s) > w.acked:
		end := min(w.p, w.s)
		w.acked += uint32(w.IntN(3))
		from := min(end-1, w.acked+1+uint32(w.IntN(8)))
		words := fmt.Sprintf(" sack %d-%d", 1001+from, 1001+end)
		if w.stamped {
			words = fmt.Sprint(" ecr ", w.ts) + words
		}
		w.line("in A 501 %d%s", 1001+min(w.acked, end), words)
	case w.calm && n >= 84 && n < 88:
		w.line("wait %d", []int{1, 3, 6, 12}[w.IntN(4)])
	case w.calm && n >= 88 && !w.one(6):
	case n < 34:
		w.p = w.says("p", w.p)
	case n < 68:
		w.s = w.says("s", w.s)
	case n < 74 && w.stamped:
		w.line("in A %d %d ecr %d", 501+10*w.IntN(12), 1001+w.IntN(int(w.p)+1), max(1, int(w.ts)-w.IntN(8)))
	case n < 80:
		from := w.IntN(int(w.p) + 1)
		w.line("in A %d %d sack %d-%d ecr 1", 501+10*w.IntN(12), 1001+w.IntN(from+1), 1001+from, 1001+int(w.p))
	case n < 84:
		w.line("wait %d", []int{1, 6, 12, 30, 1100, 4000}[w.IntN(6)])
	case n < 86 && w.one(4):
		isn := 1000 + 300*w.IntN(3)
		w.line("p SA %d 501", isn)
		w.line("s SA 9000 501")
	case n < 88 && w.one(6):
		w.line("failover")
		w.marked = false
	case n < 93 && !w.marked:
		w.line("mark")
		w.marked = true
	case n < 96 && w.marked:
		w.line("received")
	case w.marked:
		w.line("heard")
		w.s, w.marked = w.p, false
	}
}

// What packets come in, and at which numbers a connection begins, changes nothing of what
// becomes of it, and neither does it which packets are taken as plain.
func TestACourseIsTheSameInEachVessel(t *testing.T) {
	seeds := 400
	if testing.Short() {
		seeds = 30
	}
	patient := everything()
	patient.AckTimeout = time.Second
	adaptive := patient
	adaptive.Adaptive, adaptive.Strikes, adaptive.Retry = true, 2, 50*time.Millisecond
	configs := []compare.Config{patient, {}, {Marks: true, PatientAcks: true, ReleaseRetransmits: true}, adaptive}
	list := vessels()
	for i, shift := range []uint32{1<<32 - 1004, 1<<32 - 1010, 1<<31 - 1010, 1<<31 - 1004} {
		list = append(list, vessel{what: fmt.Sprint("IPv4, numbers from ", shift), wrap: list[0].wrap, guest: shift, client: shift + 480, clock: shift + 1001, vnet: 12 * (i % 2)})
	}
	for seed := range seeds {
		w := &wild{Rand: rand.New(rand.NewPCG(uint64(seed), 77)), ts: 5}
		w.stamped, w.calm = w.one(2), w.one(2)
		w.line("mark")
		w.line("heard")
		scale := ""
		if w.one(2) {
			scale = fmt.Sprint(" ws ", w.IntN(8))
		}
		w.line("p SA 1000 501%s", scale)
		w.line("s SA 9000 501%s", scale)
		for range 60 {
			w.step()
		}
		c := course{fmt.Sprint("seed ", seed), w.b.String()}
		cfg := configs[seed%len(configs)]
		// Behind a virtio-net header what one guest repeats for both leaves in smaller pieces.
		plain, behind := c.outcomes(t, cfg, &list[0], true), c.outcomes(t, cfg, &list[2], true)
		for _, v := range list {
			if v.tagged && !cfg.CompareVLAN || v.alert {
				continue // an acknowledgment of the secondary's guest leaves only in headers as the primary's has
			}
			first := plain
			if v.vnet > 0 {
				first = behind
			}
			for i, o := range c.outcomes(t, cfg, &v, false) {
				if o != first[i] {
					t.Errorf("%s, %s: %d: %s: %s, want %s", c.what, v.what, i, o.line, o.is, first[i].is)
					break
				}
			}
		}
		if t.Failed() {
			t.Fatalf("%s", c.events)
		}
	}
}
