package colotest

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// read reads until n bytes or an error.
func read(c *Conn, n int) ([]byte, error) {
	b := make([]byte, n)
	n, err := io.ReadFull(c, b)
	if err == io.ErrUnexpectedEOF {
		err = io.EOF
	}
	return b[:n], err
}

func TestPipeBreaksWhereItIsTold(t *testing.T) {
	for _, c := range []struct {
		name   string
		flow   Flow
		writes []string // until one fails
		sent   int      // of the bytes, before the failure
		gets   string
	}{
		{"never", Flow{}, []string{"abc", "def"}, 6, "abcdef"},
		{"at a byte", Flow{Break: Point{Byte, 4}}, []string{"abc", "def"}, 4, "abcd"},
		{"at the first byte", Flow{Break: Point{Byte, 0}}, []string{"abc"}, 0, ""},
		{"at a write", Flow{Break: Point{Write, 1}}, []string{"abc", "def"}, 3, "abc"},
		{"at a write, and what is in flight is lost", Flow{Break: Point{Write, 1}, Drop: true}, []string{"abc", "def"}, 3, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := Pipe(c.flow, Flow{})
			sent, broke := 0, false
			for _, w := range c.writes {
				n, err := a.Write([]byte(w))
				sent += n
				if broke = err != nil; broke && !errors.Is(err, ErrBroken) {
					t.Errorf("write: %v", err)
				}
			}
			if sent != c.sent || broke != (c.flow.Break.Op != Never) {
				t.Errorf("%d bytes were sent, want %d; broke: %v", sent, c.sent, broke)
			}
			if !broke {
				a.Close()
			}
			got, err := read(b, 100)
			want := io.EOF
			if broke {
				want = ErrBroken
			}
			if string(got) != c.gets || !errors.Is(err, want) {
				t.Errorf("read %q, %v; want %q, %v", got, err, c.gets, want)
			}
			if _, err := b.Write([]byte("x")); broke != errors.Is(err, ErrBroken) && broke {
				t.Errorf("the other direction: %v", err)
			}
		})
	}
}

func TestPipeBreaksAtARead(t *testing.T) {
	a, b := Pipe(Flow{Break: Point{Read, 1}, Chunk: 2, Drop: true}, Flow{})
	a.Write([]byte("abcdef"))
	if got, err := read(b, 6); string(got) != "ab" || !errors.Is(err, ErrBroken) {
		t.Errorf("read %q, %v", got, err)
	}
	if !a.Broken() {
		t.Error("the other end does not know")
	}
}

func TestPipeCorruptsAndDeliversInPieces(t *testing.T) {
	a, b := Pipe(Flow{Corrupt: map[int64]byte{0: 0x20, 4: 0x20}, Chunk: 2, Capacity: 3}, Flow{})
	go func() {
		a.Write([]byte("abc")) // the second write waits for room
		a.Write([]byte("def"))
		a.Close()
	}()
	got, err := io.ReadAll(b)
	if err != nil || string(got) != "AbcdEf" {
		t.Errorf("read %q, %v", got, err)
	}
	if s := a.Sent(); s.Bytes != 6 || s.Writes != 2 || s.Reads < 3 {
		t.Errorf("%+v", s)
	}
}

func TestPipeStallsUntilTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := Pipe(Flow{Stall: Point{Byte, 2}, Capacity: 4}, Flow{})
		start := time.Now()
		a.SetWriteDeadline(start.Add(time.Second))
		b.SetReadDeadline(start.Add(2 * time.Second))
		go func() {
			if n, err := a.Write([]byte("abcdefgh")); n != 6 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("wrote %d bytes, %v; want those that arrive and those there is room for", n, err)
			}
		}()
		if got, err := read(b, 8); string(got) != "ab" || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %q, %v", got, err)
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("after %v", d)
		}
		// A later deadline ends the wait that an earlier one began.
		b.SetReadDeadline(time.Time{})
		go func() {
			time.Sleep(time.Second)
			b.SetReadDeadline(time.Now())
		}()
		if _, err := b.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

func TestTrafficEnumeratesItsPoints(t *testing.T) {
	var got []string
	for p := range (Traffic{Bytes: 5, Writes: 1, Reads: 2}).Points(func(i int64) bool { return i%2 == 0 }) {
		got = append(got, p.String())
	}
	if want := []string{"write 0", "read 0", "read 1", "byte 0", "byte 2", "byte 4"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestOracleTellsWhatAClientWouldNotice(t *testing.T) {
	cfg := VMConfig{Pages: 4, Touch: 2, TSCPerMille: 500, Seed: 7}
	var frames [][]byte
	cfg.Output = func(f []byte) error {
		frames = append(frames, bytes.Clone(f))
		return nil
	}
	g, err := NewVM(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := errors.Join(g.Resume(t.Context()), g.Step(5)); err != nil {
		t.Fatal(err)
	}
	flip := func(f []byte, at int) []byte {
		f = bytes.Clone(f)
		f[at] ^= 1
		return f
	}
	hash := len(frames[0]) - 16
	for _, c := range []struct {
		name string
		seen [][]byte
		want Verdict
	}{
		{"all", frames, Verdict{Frames: 5}},
		{"some twice", slices.Concat(frames[:3], frames[1:]), Verdict{Frames: 7, Duplicated: 2}},
		{"a gap", slices.Concat(frames[:2], frames[4:]), Verdict{Frames: 3, Lost: 2}},
		{"other words", slices.Concat(frames, [][]byte{flip(frames[2], hash)}), Verdict{Frames: 6, Contradicted: 1}},
		{"another history", slices.Concat(frames[:2], [][]byte{flip(frames[2], hash)}), Verdict{Frames: 3, Corrupted: 1}},
		{"noise", slices.Concat(frames[:1], [][]byte{{1, 2, 3}}), Verdict{Frames: 2, Corrupted: 1}},
		{"another sender", slices.Concat(frames[:1], [][]byte{flip(frames[1], 6)}), Verdict{Frames: 2, Corrupted: 1}},
	} {
		o, err := NewOracle(cfg)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range c.seen {
			o.Frame(f)
		}
		got := o.Verdict()
		if (got.First == nil) != got.Clean() {
			t.Errorf("%s: %+v", c.name, got)
		}
		if got.First = nil; got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestLedgerFindsAnyByteThatIsNotTheGuests(t *testing.T) {
	var l Ledger
	g, err := NewVM(VMConfig{Pages: 4, Touch: 2, TSCPerMille: 500, Output: l.Frame})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := errors.Join(g.Resume(t.Context()), g.Step(20)); err != nil {
		t.Fatal(err)
	}
	if err := l.Verify(g); !errors.Is(err, ErrRunning) {
		t.Errorf("a guest that runs: %v", err)
	}
	if err := errors.Join(g.Pause(t.Context()), l.Verify(g)); err != nil {
		t.Errorf("a guest that is right: %v", err)
	}
	set := len(g.mem) - 4*4096
	for _, at := range []int{set, set + 5000, len(g.mem) - 1, 1<<20 + 16, 1<<20 + 16*20} {
		g.mem[at] ^= 1
		if l.Verify(g) == nil {
			t.Errorf("byte %#x of memory is wrong and nobody notices", at)
		}
		g.mem[at] ^= 1
	}
	g.vcpus[0].regs.X ^= 1
	if l.Verify(g) == nil {
		t.Error("a register is wrong and nobody notices")
	}
}

func TestNetworkHoldsAndReleases(t *testing.T) {
	n := &Network{Limit: 2}
	full := 0
	n.Full = func() { full++ }
	out := func(s string) error { return n.Output([]byte(s)) }
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(out("a"), n.Mark(0), n.Received(0), n.Loaded(0), out("b"), out("c"))
	if err := out("d"); !errors.Is(err, ErrFull) || full != 1 {
		t.Errorf("a third frame: %v", err)
	}
	must(n.Mark(1), n.Received(1), out("d"), n.Loaded(1))
	if err := n.Received(2); err == nil {
		t.Error("received(2) before mark(2) is accepted")
	}
	must(n.Failover(), out("e"))
	var got string
	for _, r := range n.Released() {
		got += string(r.Frame)
	}
	if got != "abcde" || n.Held() != 0 {
		t.Errorf("%q left, %d are held", got, n.Held())
	}
	if err := n.Loaded(5); err == nil {
		t.Error("loaded(5) is accepted")
	}
}

func TestDiskFollows(t *testing.T) {
	ctx := t.Context()
	p, s := NewDisk(), NewDisk()
	p.Append(1)
	p.Follow(s)
	p.Append(2)
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	want := func(why string, d *Disk, v ...uint64) {
		t.Helper()
		if got := d.Content(); !slices.Equal(got, v) {
			t.Errorf("%s: %v, want %v", why, got, v)
		}
	}
	must(p.Mark(ctx, 0), s.Start(ctx), p.Start(ctx), p.Loaded(ctx, 0))
	p.Append(3)
	s.Append(90)
	want("before the checkpoint the secondary sees its own", s, 1, 2, 90)
	must(p.Mark(ctx, 1))
	p.Append(4)
	must(s.Checkpoint(ctx, 1), p.Loaded(ctx, 1))
	want("what is behind the mark is not in the checkpoint", s, 1, 2, 3)
	s.Append(91)
	must(s.Stop(ctx, true))
	want("what was forwarded since is void", s, 1, 2, 3, 91)
	if err := p.Loaded(ctx, 7); err == nil {
		t.Error("loaded(7) is accepted")
	}
}
