package guest

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/internal/require"
)

func TestAssembledBytesMatchTheSource(t *testing.T) {
	as := require.Program(t, require.Assembler, "as")
	ld := require.Program(t, require.Assembler, "ld")
	dir := t.TempDir()
	object, image := filepath.Join(dir, "guest.o"), filepath.Join(dir, "guest.bin")
	for _, cmd := range [][]string{
		{as, "--64", "-o", object, "guest.S"},
		{ld, "-Ttext=0x8000", "--oformat=binary", "-o", image, object},
	} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			require.Missing(t, require.Assembler, &exec.Error{Name: cmd[0] + ": " + string(out), Err: err})
		}
	}
	built, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, program) {
		t.Fatalf("guest.bin (%d bytes) is not what guest.S assembles to (%d bytes)", len(program), len(built))
	}
	if len(program) > PageSize {
		t.Fatalf("the program has %d bytes, its place is one page", len(program))
	}
}

// load returns the memory of a guest and each vCPU's registers.
func load(t testing.TB, p Params) ([]byte, []Regs) {
	t.Helper()
	mem := make([]byte, p.MemSize())
	if err := Load(mem, p); err != nil {
		t.Fatal(err)
	}
	var regs []Regs
	for v := range max(p.VCPUs, 1) {
		r, err := Boot(mem, v)
		if err != nil {
			t.Fatal(err)
		}
		regs = append(regs, r)
	}
	return mem, regs
}

func TestTheModelFollowsTheGoGuestFromItsFramesAlone(t *testing.T) {
	for _, p := range []Params{
		{},
		{Touch: 1, Pages: 1},
		{VCPUs: 2, Pages: 16, Touch: 16, Seed: 3},
		{VCPUs: 2, Pages: 37, Touch: 5, TSCPerMille: 250, Seed: 4},
		{Pages: 8, Touch: 3, TSCPerMille: 1000},
		{VCPUs: 2, Pages: 9, Touch: 2, TSCPerMille: 100, Disk: 64 << 10, DiskEvery: 3},
		{VCPUs: 3, Pages: 9, Touch: 9, Disk: 64 << 10, DiskEvery: 2, Ring: 2048},
	} {
		mem, regs := load(t, p)
		tsc := rand.New(rand.NewPCG(1, 2)).Uint64
		for v := range regs {
			model, err := NewModel(p, v)
			if err != nil {
				t.Fatal(err)
			}
			taken := 0
			var want []Entry
			for n := range uint64(2000) {
				addr, err := Round(mem, &regs[v], tsc, nil)
				if err != nil {
					t.Fatal(err)
				}
				b, err := Emitted(mem, addr)
				if err != nil {
					t.Fatal(err)
				}
				frame, err := ParseFrame(b)
				if err != nil {
					t.Fatal(err)
				}
				if frame.T != 0 {
					taken++
				}
				if (frame.T != 0) != model.TakesTSC(n+1) {
					t.Fatalf("%+v: round %d takes in the TSC %#x, model says %v", p, n+1, frame.T, model.TakesTSC(n+1))
				}
				gotN, gotH := model.Next(frame.T)
				if frame.VCPU != v || frame.N != gotN || frame.H != gotH || gotN != n+1 {
					t.Fatalf("%+v: frame %+v, model says round %d hash %#x of vCPU %d", p, frame, gotN, gotH, v)
				}
				want = append(want, Entry{gotN, gotH})
				write, wrote := model.Write()
				asked, ok, err := Asked(mem, v)
				if err != nil || ok != wrote {
					t.Fatalf("%+v: round %d asks the disk: %v, model says %v (%v)", p, gotN, ok, wrote, err)
				}
				if wrote {
					asked.Done(mem)
					if !bytes.Equal(write.Data, asked.Data) || write.Off != asked.Off || write.Flush != asked.Flush || write.Round != asked.Round {
						t.Fatalf("%+v: round %d writes\n%+v, model says\n%+v", p, gotN, asked, write)
					}
				}
			}
			if share := taken * 1000 / 2000; share < p.TSCPerMille-5 || share > p.TSCPerMille+5 {
				t.Errorf("%+v: %d of 2000 rounds took in the TSC", p, taken)
			}
			got, err := ReadRing(mem, v)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%+v: ring of vCPU %d (-want +got):\n%s", p, v, d)
			}
			for i := range p.withDefaults().Pages * perPage {
				if w := binary.LittleEndian.Uint64(mem[p.withDefaults().setBase(v)+uint64(i)*8:]); w != model.Word(i) {
					t.Fatalf("%+v: word %d of the working set is %#x, model says %#x", p, i, w, model.Word(i))
				}
			}
		}
	}
}

func TestTheRingKeepsItsLastRounds(t *testing.T) {
	for _, p := range []Params{{Pages: 1}, {Pages: 1, Ring: 256}, {Pages: 1, VCPUs: 2, Ring: 4096}} {
		mem, regs := load(t, p)
		keeps, last := p.Ring, len(regs)-1
		if keeps == 0 {
			keeps = RingEntries
		}
		for range keeps + 10 {
			if _, err := Round(mem, &regs[last], nil, nil); err != nil {
				t.Fatal(err)
			}
		}
		ring, err := ReadRing(mem, last)
		if err != nil {
			t.Fatal(err)
		}
		if len(ring) != keeps || ring[0].N != 11 || ring[keeps-1] != (Entry{regs[last].N, regs[last].X}) {
			t.Fatalf("%+v: %d entries, %+v to %+v", p, len(ring), ring[0], ring[len(ring)-1])
		}
		binary.LittleEndian.PutUint64(mem[p.ring(last)+200*ringEntrySize:], 7)
		if _, err := ReadRing(mem, last); err == nil {
			t.Fatalf("%+v: a ring with a wrong entry was accepted", p)
		}
	}
}

func TestMemoryThatWasZeroIsLoadedTheSame(t *testing.T) {
	for _, p := range []Params{{}, {VCPUs: 2, Pages: 3, Ring: 256, Disk: 1 << 20, DiskEvery: 1}} {
		want, got := bytes.Repeat([]byte{0xa5}, int(p.MemSize())), make([]byte, p.MemSize())
		if err := Load(want, p); err != nil {
			t.Fatal(err)
		}
		if err := LoadZeroed(got, p); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(want, got) {
			t.Errorf("%+v: it differs", p)
		}
	}
}

func TestARingThatLeadsOutsideMemoryIsRefused(t *testing.T) {
	good, regs := load(t, Params{Pages: 1, Ring: 256})
	for _, entries := range []uint64{3, 1 << 20, 1 << 60, 1 << 15, ^uint64(0)} {
		mem := bytes.Clone(good)
		binary.LittleEndian.PutUint64(mem[StateBase+stateEntries:], entries)
		r := regs[0]
		if _, err := Round(mem, &r, nil, nil); err == nil || r != regs[0] {
			t.Errorf("a ring of %d rounds: %v", entries, err)
		}
		if _, err := ReadRing(mem, 0); err == nil {
			t.Errorf("a ring of %d rounds was read", entries)
		}
	}
}

func TestARoundNamesEveryByteItWrites(t *testing.T) {
	p := Params{VCPUs: 2, Pages: 20, Touch: 4, TSCPerMille: 500, Disk: 1 << 20, DiskEvery: 2}
	mem, regs := load(t, p)
	before := make([]byte, len(mem))
	named := make([]bool, len(mem))
	rounds := 40
	if testing.Short() {
		rounds = 8
	}
	for n := range rounds {
		copy(before, mem)
		clear(named)
		_, err := Round(mem, &regs[n%2], func() uint64 { return uint64(n) + 1 }, func(off, n uint64) {
			for i := off; i < off+n; i++ {
				named[i] = true
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		for i := range mem {
			if mem[i] != before[i] && !named[i] {
				t.Fatalf("round %d wrote byte %#x without a word", n+1, i)
			}
		}
	}
}

func TestAChangedWordChangesEveryLaterHashOnceItsPageIsTouched(t *testing.T) {
	p := Params{Pages: 4, Touch: 2}
	mem, regs := load(t, p)
	mem[p.withDefaults().setBase(0)+2*PageSize] ^= 1
	model, err := NewModel(p, 0)
	if err != nil {
		t.Fatal(err)
	}
	differs := false
	for range 50 {
		if _, err := Round(mem, &regs[0], nil, nil); err != nil {
			t.Fatal(err)
		}
		_, h := model.Next(0)
		if differs && h == regs[0].X {
			t.Fatalf("round %d agrees again", regs[0].N)
		}
		differs = h != regs[0].X
	}
	if !differs {
		t.Fatal("50 rounds did not notice")
	}
}

func TestACloneGoesOnByItself(t *testing.T) {
	m, err := NewModel(Params{Touch: 9}, 0)
	if err != nil {
		t.Fatal(err)
	}
	m.Next(0)
	c := m.Clone()
	for range 100 {
		m.Next(0)
	}
	for c.Round() < m.Round() {
		c.Next(0)
	}
	if n, h := m.Next(0); n != 102 {
		t.Fatalf("round %d", n)
	} else if _, ch := c.Next(0); ch != h {
		t.Fatalf("the clone says %#x, the model %#x", ch, h)
	}
}

func TestFramesAreValidUDP(t *testing.T) {
	mem, regs := load(t, Params{VCPUs: 2})
	addr, err := Round(mem, &regs[1], nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Emitted(mem, addr)
	if err != nil {
		t.Fatal(err)
	}
	be := binary.BigEndian
	ip, udp := b[ethernetSize:][:ipv4Size], b[ethernetSize+ipv4Size:]
	for what, ok := range map[string]bool{
		"EtherType is IPv4":          be.Uint16(b[12:]) == 0x0800,
		"IPv4 checksum is right":     checksum(ip) == 0,
		"IPv4 length is right":       int(be.Uint16(ip[2:])) == len(b)-ethernetSize,
		"protocol is UDP":            ip[9] == 17,
		"source port tells the vCPU": be.Uint16(udp) == SourcePort+1,
		"destination port":           be.Uint16(udp[2:]) == DestPort,
		"UDP length is right":        int(be.Uint16(udp[4:])) == len(udp),
		"UDP checksum is none":       be.Uint16(udp[6:]) == 0,
	} {
		if !ok {
			t.Errorf("not so: %s (% x)", what, b)
		}
	}
	for i := range b[:payloadOffset+payloadN] {
		bad := bytes.Clone(b)
		bad[i] ^= 0x80
		if _, err := ParseFrame(bad); err == nil {
			t.Errorf("a frame with byte %d changed was accepted", i)
		}
	}
	for n := range b {
		if _, err := ParseFrame(b[:n]); err == nil {
			t.Errorf("a frame of %d bytes was accepted", n)
		}
	}
}

func TestBadParametersAndBadMemoryAreRefused(t *testing.T) {
	for _, p := range []Params{
		{VCPUs: -1}, {VCPUs: MaxVCPUs + 1}, {Pages: -1}, {Pages: math.MaxInt}, {Pages: 700000, VCPUs: 2},
		{Pages: 4, Touch: 5}, {Touch: -1}, {TSCPerMille: -1}, {TSCPerMille: 1001},
		{Ring: -256}, {Ring: 128}, {Ring: 300}, {Ring: 2 * RingEntries},
		{Disk: 513}, {Disk: MaxDisk + SectorSize}, {DiskEvery: 1}, {Disk: 4096, DiskEvery: -1}, {Disk: 4096, VCPUs: 2, DiskEvery: 1},
	} {
		if err := Load(make([]byte, 8<<20), p); err == nil {
			t.Errorf("%+v was accepted", p)
		}
	}
	p := Params{}
	if err := Load(make([]byte, p.MemSize()-1), p); err == nil {
		t.Error("too little memory was accepted")
	}
	mem, regs := load(t, p)
	for off := stateSet; off <= stateFrame; off += 8 {
		if off == stateTSC || off == stateDelay {
			continue
		}
		bad := bytes.Clone(mem)
		for i := range 8 {
			bad[StateBase+off+i] = 0xff
		}
		r := regs[0]
		if _, err := Round(bad, &r, nil, nil); err == nil || r != regs[0] {
			t.Errorf("state word %#x of ones: error %v, registers %+v", off, err, r)
		}
	}
	withDisk, regs := load(t, Params{Disk: 1 << 20, DiskEvery: 1})
	for _, word := range []struct {
		off  int
		fill byte
	}{
		{StateBase + statePages, 0}, {StateBase + stateSectors, 0},
		{StateBase + stateDesc, 0xff}, {descriptor(0) + descData, 0xff},
	} {
		bad := bytes.Clone(withDisk)
		copy(bad[word.off:], bytes.Repeat([]byte{word.fill}, 8))
		r := regs[0]
		if _, err := Round(bad, &r, nil, nil); err == nil || r != regs[0] {
			t.Errorf("word %#x of %#x bytes: error %v, registers %+v", word.off, word.fill, err, r)
		}
	}
	for _, addr := range []uint64{uint64(len(mem)), uint64(len(mem)) - 2, 1 << 63, ^uint64(0)} {
		if _, err := Emitted(mem, addr); err == nil {
			t.Errorf("a frame buffer at %#x was accepted", addr)
		}
	}
	if _, err := Emitted(mem, p.withDefaults().setBase(0)); err == nil {
		t.Error("a frame of random length was accepted")
	}
	if _, err := Boot(mem, MaxVCPUs); err == nil {
		t.Error("a vCPU too many booted")
	}
	if _, err := Polls(mem, MaxVCPUs); err == nil {
		t.Error("the polls of a vCPU too many were read")
	}
	if _, err := ReadRing(mem, 5); err == nil {
		t.Error("a ring outside memory was read")
	}
}

func TestARoundAllocatesNothing(t *testing.T) {
	mem, regs := load(t, Params{Touch: 16, TSCPerMille: 500, Disk: 1 << 20, DiskEvery: 1})
	tsc := func() uint64 { return 1 }
	var written uint64
	touched := func(off, n uint64) { written += n }
	if n := testing.AllocsPerRun(100, func() {
		if _, err := Round(mem, &regs[0], tsc, touched); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations per round", n)
	}
}

func FuzzParseFrame(f *testing.F) {
	mem, regs := load(f, Params{})
	addr, _ := Round(mem, &regs[0], nil, nil)
	b, _ := Emitted(mem, addr)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, err := ParseFrame(b)
		if err != nil {
			return
		}
		var buffer [bufferSize]byte
		putTemplate(buffer[:], frame.VCPU)
		payload := buffer[lengthSize+payloadOffset:]
		binary.BigEndian.PutUint64(payload[payloadN:], frame.N)
		binary.BigEndian.PutUint64(payload[payloadH:], frame.H)
		binary.BigEndian.PutUint64(payload[payloadT:], frame.T)
		if !bytes.Equal(buffer[lengthSize:], b) {
			t.Fatalf("% x parses as %+v, which is % x", b, frame, buffer[lengthSize:])
		}
	})
}

func TestEveryWriteStaysInItsVCPUsPartOfTheDisk(t *testing.T) {
	p := Params{VCPUs: 3, Pages: 5, Touch: 1, Disk: 100 << 10, DiskEvery: 1}
	lengths, flushed := make(map[int]bool), 0
	seen := make(map[int64]bool)
	for v := range p.VCPUs {
		m, err := NewModel(p, v)
		if err != nil {
			t.Fatal(err)
		}
		lo, hi := int64(v)*66*SectorSize, int64(v+1)*66*SectorSize
		for range 3200 {
			n, _ := m.Next(0)
			w, ok := m.Write()
			if !ok || w.Round != n || w.Off < lo || w.Off+int64(len(w.Data)) > hi {
				t.Fatalf("vCPU %d writes [%d, %d), its part is [%d, %d)", v, w.Off, w.Off+int64(len(w.Data)), lo, hi)
			}
			lengths[len(w.Data)] = true
			for off := 0; off < len(w.Data); off += SectorSize {
				seen[w.Off+int64(off)] = true
				if got := SectorRound(w.Data[off:]); got != n {
					t.Fatalf("a sector of round %d says %d", n, got)
				}
			}
			if w.Flush {
				flushed++
			}
		}
	}
	if len(lengths) != 8 || len(seen) != 3*66 || flushed != 3*200 {
		t.Errorf("%d lengths, %d sectors, %d flushes", len(lengths), len(seen), flushed)
	}
}

func TestARequestThatLeadsOutsideMemoryIsRefused(t *testing.T) {
	p := Params{Disk: 1 << 20, DiskEvery: 1}
	mem, regs := load(t, p)
	if _, err := Round(mem, &regs[0], nil, nil); err != nil {
		t.Fatal(err)
	}
	at := descriptor(0)
	if _, err := Requested(mem, uint64(at)); err != nil {
		t.Fatal(err)
	}
	for _, addr := range []uint64{uint64(len(mem)), uint64(len(mem)) - descSize + 1, ^uint64(0)} {
		if _, err := Requested(mem, addr); err == nil {
			t.Errorf("a descriptor at %#x was accepted", addr)
		}
	}
	for off, v := range map[int]uint64{descSector: 1 << 63, descLength: PageSize + 1, descData: uint64(len(mem)) - 1} {
		bad := bytes.Clone(mem)
		binary.LittleEndian.PutUint64(bad[at+off:], v)
		if _, err := Requested(bad, uint64(at)); err == nil {
			t.Errorf("word %#x of %#x was accepted", off, v)
		}
		if _, asked, err := Asked(bad, 0); err == nil || asked {
			t.Errorf("word %#x of %#x was asked for", off, v)
		}
	}
	if n, err := LastWrite(mem, 0); n != 0 || err != nil {
		t.Errorf("last write %d before it is done (%v)", n, err)
	}
	w, _, _ := Asked(mem, 0)
	w.Done(mem)
	if n, err := LastWrite(mem, 0); n != 1 || err != nil {
		t.Errorf("last write %d (%v)", n, err)
	}
	if f, err := LastFrame(mem, 0); f.N != 1 || err != nil {
		t.Errorf("last frame %+v (%v)", f, err)
	}
}

func BenchmarkRound(b *testing.B) {
	mem, regs := load(b, Params{Pages: 4096, Touch: 64})
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Round(mem, &regs[0], nil, nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/64, "ns/page")
}
