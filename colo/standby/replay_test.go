package standby_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// script is the connection of a primary that sends the bytes of its Reader and ignores the answers.
type script struct{ io.Reader }

func (script) Write(p []byte) (int, error) { return len(p), nil }
func (script) Close() error                { return nil }

// replayed is a guest after a session with what a primary had sent.
type replayed struct {
	*standby.Copy
	err  error
	ends []int64 // where each checkpoint was whole, in the stream
}

func replay(t *testing.T, sent []byte, cfg standby.Config, step func(op string, epoch uint64, g *standby.Copy)) *replayed {
	t.Helper()
	x := &replayed{Copy: standby.New(cfg)}
	t.Cleanup(func() { x.Copy.Close() })
	var at int64
	events := new(event.Bus)
	event.Subscribe(events, func(c event.CheckpointCommit) {
		at += int64(c.Bytes)
		if c.Epoch > 0 {
			at += 4 // the request
		}
		x.ends = append(x.ends, at)
	})
	s, err := colo.NewSecondary(script{bytes.NewReader(sent)}, colo.SecondaryConfig{
		VM: x.Copy, Loader: x.Copy, RAM: x.Copy, Events: events,
		Arbiter: colo.ArbiterFunc(func(context.Context, colo.Claim) error { return colo.ErrRefused }),
		Step: func(op string, epoch uint64) {
			if step != nil {
				step(op, epoch, x.Copy)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	x.err = s.Run(context.Background())
	return x
}

func put(t *testing.T, g *standby.Copy) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := g.Put(qemufile.NewWriter(&b)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// breakOff replays a session, cut at many places, and compares what is left with
// the checkpoint that was whole before.
func breakOff(t *testing.T, sent []byte) {
	t.Helper()
	whole := replay(t, sent, standby.Config{}, nil)
	ends := whole.ends
	if len(ends) < 4 {
		t.Fatalf("%d checkpoints: %v", len(ends), whole.err)
	}
	ends = ends[:4] // the initial migration and three checkpoints
	sent = sent[:ends[3]]
	var states [][]byte
	for _, end := range ends {
		x := replay(t, sent[:end], standby.Config{}, nil)
		states = append(states, put(t, x.Copy))
	}
	if bytes.Equal(states[1], states[2]) && len(sent) > 4096 {
		t.Error("two checkpoints are the same: nothing is compared")
	}
	// Each record's beginning, and some places in between.
	var cuts []int64
	for cut := int64(0); cut < ends[0]; cut += max(1, ends[0]/23) {
		cuts = append(cuts, cut)
	}
	for i := range ends[:3] {
		from, to := ends[i], ends[i+1]
		cuts = append(cuts, from, from+1, from+4, from+5, from+7, from+8, from+9, from+13, from+14, from+22, to-1, to-2, to-5, to-6)
		for cut := from; cut < to; cut += max(1, (to-from)/150) {
			cuts = append(cuts, cut)
		}
	}
	slices.Sort(cuts)
	for i, cut := range slices.Compact(cuts) {
		if testing.Short() && i%4 != 0 {
			continue
		}
		x := replay(t, sent[:cut], standby.Config{}, nil)
		if x.err == nil {
			t.Fatalf("cut at %d: no error", cut)
		}
		n := 0
		for n < len(ends) && ends[n] <= cut {
			n++
		}
		if n == 0 {
			if _, err := x.Info(); !errors.Is(err, standby.ErrNothing) {
				t.Fatalf("cut at %d, in the initial migration: %v", cut, err)
			}
		} else if !bytes.Equal(put(t, x.Copy), states[n-1]) {
			t.Fatalf("cut at %d: the state is not that of checkpoint %d", cut, n-1)
		}
		x.Copy.Close()
	}
}

func vector(t testing.TB, name string) []byte {
	t.Helper()
	p, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func be(v ...uint32) (p []byte) {
	for _, v := range v {
		p = binary.BigEndian.AppendUint32(p, v)
	}
	return p
}

func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// page returns a record without a block's name.
func page(word uint64, data ...byte) []byte { return append(be64(word), data...) }

// named returns the first record of a block.
func named(word uint64, block string, data ...byte) []byte {
	return slices.Concat(be64(word), []byte{byte(len(block))}, []byte(block), data)
}

func filled(v byte) []byte { return bytes.Repeat([]byte{v}, ram.PageSize) }

// checkpoint composes a checkpoint of the vectors' machine with records of
// memory in it.
func checkpoint(t testing.TB, records ...[]byte) []byte {
	t.Helper()
	cp := vector(t, "none-checkpoint.bin")
	head := 4 + 1 + 4 // vmstate-send, END, id
	return slices.Concat(be(1), cp[:head], slices.Concat(records...), cp[head:])
}

// noneGuest returns the stream of the vectors' machine with three composed checkpoints.
func noneGuest(t testing.TB) []byte {
	return slices.Concat(
		vector(t, "none-initial.bin"),
		checkpoint(t, named(0x3000|0x08, "ram", filled(7)...), page(0x4000|0x28, filled(8)...)),
		// The first record has CONTINUE, for the block of the checkpoint before, and is a
		// difference to the page there.
		checkpoint(t, page(0x3000|0x60, 1, 0, 3, 2, 1, 99), page(0x4000|0x22, 0)),
		checkpoint(t, page(0x4000|0x60, 1, 0, 3, 0, 1, 55), page(0x5000|0x28, filled(5)...), page(0x5000|0x60, 1, 0, 3, 1, 1, 6)),
	)
}

func TestCheckpointsOfEveryKindOfPage(t *testing.T) {
	x := replay(t, noneGuest(t), standby.Config{}, nil)
	if !errors.Is(x.err, io.EOF) || len(x.ends) != 4 {
		t.Fatalf("%d checkpoints, %v", len(x.ends), x.err)
	}
	want := make([]byte, 1<<20)
	copy(want[0x3000:], filled(7))
	want[0x3002] = 99
	want[0x4000] = 55
	copy(want[0x5000:], filled(5))
	want[0x5001] = 6
	got := make([]byte, len(want))
	if err := x.ReadRAM("ram", 0, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes of memory are wrong", differences(got, want))
	}
	in, err := x.Info()
	if err != nil || in.Epoch != 3 || in.Machine != "none" || in.RAM != 1<<20 || in.RunState != "running" || // the vectors say prelaunch
		len(in.Devices) != 2 {
		t.Errorf("%+v, %v", in, err)
	}
}

func TestABrokenCheckpointLeavesTheOneBefore(t *testing.T) { breakOff(t, noneGuest(t)) }

func TestWhatIsWrittenCanBeReadAndWrittenAgain(t *testing.T) {
	x := replay(t, noneGuest(t), standby.Config{}, nil)
	b := put(t, x.Copy)
	d, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(b)), memory{})
	if err != nil {
		t.Fatal(err)
	}
	if d.VMDesc == nil || len(d.VMDesc.Devices) != 2 {
		t.Fatalf("description: %+v", d.VMDesc)
	}
	var again bytes.Buffer
	w := qemufile.NewWriter(&again)
	if err := errors.Join(d.Put(w), w.Flush()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(again.Bytes(), b) {
		i := 0
		for again.Bytes()[i] == b[i] {
			i++
		}
		t.Errorf("it is not the same stream: %d and %d bytes, from %d on: %x and %x", len(b), again.Len(), i, b[i:min(i+40, len(b))], again.Bytes()[i:min(i+40, again.Len())])
	}
	// A guest from the file is the same guest: a stream is also an initial
	// migration.
	y := replay(t, b, standby.Config{}, nil)
	if !bytes.Equal(put(t, y.Copy), b) {
		t.Errorf("received again it is another guest: %v", y.err)
	}
}

// memory reads the live sections of ram, and keeps their bytes.
type memory struct{}

type body []byte

func (b body) Put(w *qemufile.Writer) { w.Write(b) }

func (memory) DecodeLive(_ vmstate.Header, r *qemufile.Reader) (vmstate.LiveBody, error) {
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	var walk ram.Walker
	err := walk.Walk(r, func(rec *ram.Record) error { rec.Put(w, ram.Format{}); return nil })
	err = errors.Join(err, w.Flush())
	return body(b.Bytes()), err
}

func TestADeviceOfAnotherShapeIsDescribedByItsLength(t *testing.T) {
	cp := checkpoint(t)
	// A subsection of five bytes at the end of "timer".
	sub := slices.Concat([]byte{5, 7}, []byte("timer/x"), be(1), []byte{1, 2, 3, 4, 5})
	at := bytes.Index(cp, slices.Concat([]byte{0x7e}, be(0), []byte{4})) // the footer of timer
	size := bytes.LastIndex(cp[:at], be(4, 0)) + 4
	if at < 0 || size < 4 {
		t.Fatal("the vector is not what it was")
	}
	n := binary.BigEndian.Uint64(cp[size:])
	cp = slices.Concat(cp[:size], be64(n+uint64(len(sub))), cp[size+8:at], sub, cp[at:])
	x := replay(t, slices.Concat(vector(t, "none-initial.bin"), cp), standby.Config{}, nil)
	if in, _ := x.Info(); in.Epoch != 1 {
		t.Fatalf("not accepted: %v", x.err)
	}
	d, err := vmstate.ReadDocument(qemufile.NewReader(bytes.NewReader(put(t, x.Copy))), memory{})
	if err != nil || d.VMDesc == nil {
		t.Fatal(err)
	}
	timer := d.VMDesc.Find("timer", 0)
	if timer == nil || timer.Size != 24+int64(len(sub)) || d.VMDesc.Find("globalstate", 0).Size != -1 {
		t.Errorf("%+v", d.VMDesc)
	}
}

func TestAHostileCheckpointIsRefusedAndChangesNothing(t *testing.T) {
	initial := vector(t, "none-initial.bin")
	first := checkpoint(t, named(0x3000|0x08, "ram", filled(7)...))
	before := put(t, replay(t, slices.Concat(initial, first), standby.Config{}, nil).Copy)
	good := checkpoint(t, page(0x3000|0x28, filled(9)...))
	blob := bytes.Index(good, be(4, 0)) // vmstate-size and the high half of the length
	for _, c := range []struct {
		name string
		sent []byte
		want error
	}{
		{"a page beyond the block", checkpoint(t, page(0x100000|0x28, filled(1)...)), ram.ErrOffset},
		{"an unknown block", checkpoint(t, named(0x08, "rom", filled(1)...)), ram.ErrUnknownBlock},
		{"unknown flags", checkpoint(t, page(0x3000|0x2a)), ram.ErrFlags},
		{"a corrupt difference", checkpoint(t, page(0x3000|0x60, 1, 0, 3, 0, 0, 0)), ram.ErrXBZRLE},
		{"another block list", checkpoint(t, slices.Concat(named(0x2000|0x04, "\x03ram")[:8], []byte("\x03ram"), be64(0x2000))), standby.ErrBlocks},
		{"a live device", slices.Concat(be(1, 3), []byte{1}, be(9), []byte("\x03htb"), be(0, 1)), standby.ErrLive},
		{"memory of another version", slices.Concat(be(1, 3), []byte{1}, be(2), []byte("\x03ram"), be(0, 5)), ram.ErrVersion},
		{"a device among the live sections", slices.Concat(be(1, 3), []byte{4}, be(0)), vmstate.ErrSectionType},
		{"a section that nobody started", slices.Concat(be(1, 3), []byte{3}, be(77)), vmstate.ErrUnknownSection},
		{"too much device state", slices.Concat(good[:blob+4], be64(1<<40)), colo.ErrSize},
		{"no device state", slices.Concat(good[:blob+4], be64(0)), nil},
		{"device state without its end", slices.Concat(good[:blob+4], be64(5), []byte{4, 0, 0, 0, 0}), nil},
		{"device state that goes on", slices.Concat(good[:blob+4], be64(2), []byte{0, 0}), vmstate.ErrTrailing},
		{"the wrong message", slices.Concat(be(1, 5)), nil},
	} {
		x := replay(t, slices.Concat(initial, first, c.sent), standby.Config{}, nil)
		if x.err == nil || c.want != nil && !errors.Is(x.err, c.want) {
			t.Errorf("%s: %v", c.name, x.err)
		}
		if len(x.ends) != 2 || !bytes.Equal(put(t, x.Copy), before) {
			t.Errorf("%s: the guest is not that of checkpoint 1", c.name)
		}
	}
}

func TestAnInitialMigrationThatCannotBeKeptIsRefused(t *testing.T) {
	initial := vector(t, "none-initial.bin")
	end := bytes.Index(initial, []byte("\x06\x00\x00\x01\xe6{"))
	if end < 0 {
		t.Fatal("the vector is not what it was")
	}
	shared := slices.Concat([]byte{5, 26}, []byte("configuration/capabilities"), be(1, 1), []byte("\x0fx-ignore-shared"))
	config := bytes.Index(initial, []byte("none")) + 4
	for _, c := range []struct {
		name string
		sent []byte
		cfg  standby.Config
		want error
	}{
		{"more memory than allowed", initial, standby.Config{MaxRAM: 1<<20 - 1}, standby.ErrTooLarge},
		{"shared memory", slices.Concat(initial[:config], shared, initial[config:]), standby.Config{}, standby.ErrShared},
		{"no description", initial[:end], standby.Config{}, standby.ErrNoDescription},
		{"no memory", slices.Concat(initial[:config], be(0)[:1]), standby.Config{}, nil},
		{"postcopy", slices.Concat(initial[:config], []byte{8, 0, 3, 0, 0}), standby.Config{}, vmstate.ErrCommand},
	} {
		x := replay(t, c.sent, c.cfg, nil)
		if x.err == nil || c.want != nil && !errors.Is(x.err, c.want) {
			t.Errorf("%s: %v", c.name, x.err)
		}
		if _, err := x.Info(); !errors.Is(err, standby.ErrNothing) {
			t.Errorf("%s: there is a guest: %v", c.name, err)
		}
		if err := x.Put(qemufile.NewWriter(io.Discard)); !errors.Is(err, standby.ErrNothing) {
			t.Errorf("%s: it can be written: %v", c.name, err)
		}
	}
}

func TestACheckpointTakesNoMoreThanItMay(t *testing.T) {
	sent := noneGuest(t)
	x := replay(t, sent, standby.Config{MaxStaged: ram.PageSize}, nil)
	if !errors.Is(x.err, standby.ErrTooLarge) || len(x.ends) != 1 {
		t.Errorf("%d checkpoints, %v", len(x.ends), x.err)
	}
	if in, err := x.Info(); err != nil || in.Epoch != 0 {
		t.Errorf("%+v, %v", in, err)
	}
}

func TestBothDialectsAreUnderstood(t *testing.T) {
	// Composed by rule from QEMU 7.2's bytes: what QEMU from 8 on may say.
	initial := vector(t, "none-initial.bin")
	cp := checkpoint(t, named(0x3000|0x08, "ram", filled(7)...))
	enable := []byte{8, 0, 8, 0, 0}
	at := bytes.Index(initial, enable)
	if at < 0 {
		t.Fatal("the vector is not what it was")
	}
	open := slices.Concat([]byte{8, 0, 1, 0, 0}, []byte{8, 0, 2, 0, 4}, be(1))
	for _, c := range []struct {
		name string
		sent []byte
	}{
		{"without ENABLE_COLO", slices.Concat(initial[:at], initial[at+5:], cp)},
		{"with a return path first", slices.Concat(initial[:at], open, initial[at:], cp)},
		{"SWITCHOVER_START after vmstate-send", slices.Concat(initial, cp[:8], []byte{8, 0, 11, 0, 0}, cp[8:])},
		{"a request that comes early", slices.Concat(initial, cp, be(1))},
	} {
		x := replay(t, c.sent, standby.Config{}, nil)
		if len(x.ends) != 2 || !strings.Contains(x.err.Error(), "EOF") {
			t.Errorf("%s: %d checkpoints, %v", c.name, len(x.ends)-1, x.err)
		}
	}
}

func FuzzGuest(f *testing.F) {
	sent := noneGuest(f)
	f.Add(sent)
	f.Add(vector(f, "none-initial.bin"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		x := replay(t, sent, standby.Config{MaxRAM: 8 << 20, MaxState: 1 << 20}, nil)
		if _, err := x.Info(); err == nil {
			put(t, x.Copy) // whatever was accepted can be written
		}
	})
}
