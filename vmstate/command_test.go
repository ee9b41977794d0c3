package vmstate

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/gocolo/lockstep/qemufile"
)

func TestCommandBytes(t *testing.T) {
	for _, x := range []struct {
		c   Command
		hex string
	}{
		{OpenReturnPath(), "08 0001 0000"},
		{Ping(0x01020304), "08 0002 0004 01020304"},
		{PostcopyAdvise{}.Command(), "08 0003 0000"},
		{PostcopyAdvise{RAM: true, PageSizes: 4096, TargetPageSize: 4096}.Command(), "08 0003 0010 0000000000001000 0000000000001000"},
		{PostcopyListen(), "08 0004 0000"},
		{PostcopyRun(), "08 0005 0000"},
		{EnableCOLO(), "08 0008 0000"},
		{PostcopyResume(), "08 0009 0000"},
		{RecvBitmap("ram"), `08 000a 0004 03 "ram"`},
		{SwitchoverStart(), "08 000b 0000"},
	} {
		want := hexBytes(t, x.hex)
		if got := written(t, func(w *qemufile.Writer) { PutCommand(w, x.c) }); !bytes.Equal(got, want) {
			t.Errorf("%v: wrote %x, want %x", x.c, got, want)
		}
		c, err := ReadCommand(reader(want[1:]))
		if diff := cmp.Diff(x.c, c); err != nil || diff != "" {
			t.Errorf("%v: %v %s", x.c, err, diff)
		}
		for n := range want[1:] {
			_, err := ReadCommand(reader(want[1 : 1+n]))
			wantError(t, "cut", err, io.ErrUnexpectedEOF)
		}
	}
	// As QEMU 7.2 sends it.
	captured := hexBytes(t, `08 0006 0016 00 03 "ram" 00 00000000000d6000 000000000072a000`)
	d := RAMDiscard{Block: "ram", Ranges: []Range{{0xd6000, 0x72a000}}}
	if got := written(t, func(w *qemufile.Writer) { PutRAMDiscard(w, d) }); !bytes.Equal(got, captured) {
		t.Errorf("wrote %x, want %x", got, captured)
	}
}

func TestCommandPayloads(t *testing.T) {
	if v, err := Ping(7).AsPing(); v != 7 || err != nil {
		t.Errorf("ping %d, %v", v, err)
	}
	a := PostcopyAdvise{RAM: true, PageSizes: 4096 | 2<<20, TargetPageSize: 4096}
	if got, err := a.Command().AsPostcopyAdvise(); got != a || err != nil {
		t.Errorf("advise %+v, %v", got, err)
	}
	if b, err := RecvBitmap("ram").AsRecvBitmap(); b != "ram" || err != nil {
		t.Errorf("recv-bitmap %q, %v", b, err)
	}
	// Many ranges take several commands.
	d := RAMDiscard{Block: "pc.ram"}
	for i := range uint64(30) {
		d.Ranges = append(d.Ranges, Range{i << 20, 4096})
	}
	r := reader(written(t, func(w *qemufile.Writer) { PutRAMDiscard(w, d) }))
	got := RAMDiscard{Block: d.Block}
	commands := 0
	for {
		if r.Byte() != byte(CommandRecord) {
			break
		}
		c, err := ReadCommand(r)
		wantNil(t, "read", err)
		part, err := c.AsRAMDiscard()
		wantNil(t, "decode", err)
		got.Ranges = append(got.Ranges, part.Ranges...)
		commands++
	}
	if diff := cmp.Diff(d, got); diff != "" || commands != 3 {
		t.Errorf("%d commands: %s", commands, diff)
	}
	for _, c := range []Command{{Type: CommandInvalid}, Ping(1), OpenReturnPath()} {
		_, e1 := c.AsPackaged()
		_, e2 := c.AsPostcopyAdvise()
		_, e3 := c.AsRAMDiscard()
		_, e4 := c.AsRecvBitmap()
		for _, err := range []error{e1, e2, e3, e4} {
			wantError(t, "another command", err, ErrCommand)
		}
	}
	_, err := OpenReturnPath().AsPing()
	wantError(t, "another command", err, ErrCommand)
}

var badCommands = map[string]string{
	"command 0":                       "0000 0000",
	"an unknown command":              "000c 0000",
	"a payload where none is":         "0008 0001 00",
	"a ping of another length":        "0002 0005 0000000000",
	"an advise of 8 bytes":            "0003 0008 0000000000000000",
	"a discard without ranges":        `0006 0006 00 03 "ram" 00`,
	"a discard of half a range":       `0006 000e 00 03 "ram" 00 0000000000000000`,
	"a discard of another version":    `0006 0016 01 03 "ram" 00 00000000000d6000 000000000072a000`,
	"a discard without the nil":       `0006 0016 00 03 "ram" 01 00000000000d6000 000000000072a000`,
	"a discard whose name is longer":  `0006 0016 00 ff "ram" 00 00000000000d6000 000000000072a000`,
	"a discard that wraps around":     `0006 0016 00 03 "ram" 00 ffffffffffff0000 0000000000020000`,
	"a bitmap request of no block":    `000a 0001 00`,
	"a bitmap request with more":      `000a 0005 03 "ramx"`,
	"a bitmap request of no length":   `000a 0000`,
	"a package without a length":      `0007 0000`,
	"a package with a 64-bit length":  `0007 0008 0000000000000001`,
	"a switchover-start with payload": `000b 0001 00`,
}

func TestReadCommandRefuses(t *testing.T) {
	for why, x := range badCommands {
		_, err := ReadCommand(reader(hexBytes(t, x)))
		wantError(t, why, err, ErrCommand)
	}
}

func TestPutCommandRefuses(t *testing.T) {
	for why, fn := range map[string]func(w *qemufile.Writer){
		"a payload of 64 KiB":   func(w *qemufile.Writer) { PutCommand(w, Command{Payload: make([]byte, 1<<16)}) },
		"a block name too long": func(w *qemufile.Writer) { PutRAMDiscard(w, RAMDiscard{Block: string(make([]byte, 256))}) },
	} {
		w := qemufile.NewWriter(io.Discard)
		fn(w)
		wantError(t, why, w.Flush(), qemufile.ErrTooLong)
	}
}

func TestIncomingFollowsTheOrderOfPostcopy(t *testing.T) {
	advise := PostcopyAdvise{RAM: true, PageSizes: 4096, TargetPageSize: 4096}.Command()
	discarding := func(d RAMDiscard) Command {
		r := reader(written(t, func(w *qemufile.Writer) { PutRAMDiscard(w, d) })[1:])
		c, err := ReadCommand(r)
		wantNil(t, "discard", err)
		return c
	}
	discard := discarding(RAMDiscard{"ram", []Range{{0, 4096}}})
	local := Incoming{PostcopyRAM: true, PageSizes: 4096, TargetPageSize: 4096,
		Block: func(name string) (uint64, bool) { return 1 << 20, name == "ram" }}
	for _, x := range []struct {
		why  string
		in   Incoming
		seq  []Command
		want PostcopyState
		err  error // of the last
	}{
		{"the usual order", local, []Command{OpenReturnPath(), Ping(1), advise, discard, discard, Ping(2), {Type: CommandPackaged}, PostcopyListen(), PostcopyRun()}, PostcopyRunning, nil},
		{"no discard", local, []Command{advise, PostcopyListen(), PostcopyRun()}, PostcopyRunning, nil},
		{"bitmaps only", Incoming{}, []Command{PostcopyAdvise{}.Command()}, PostcopyAdvised, nil},
		{"advise twice", local, []Command{advise, advise}, PostcopyAdvised, ErrCommand},
		{"advise without the capability", Incoming{}, []Command{advise}, PostcopyNone, ErrCommand},
		{"no RAM with the capability", local, []Command{PostcopyAdvise{}.Command()}, PostcopyNone, ErrCommand},
		{"other page sizes", local, []Command{PostcopyAdvise{RAM: true, PageSizes: 8192, TargetPageSize: 4096}.Command()}, PostcopyNone, ErrCommand},
		{"a malformed advise", local, []Command{{Type: CommandPostcopyAdvise, Payload: []byte{1}}}, PostcopyNone, ErrCommand},
		{"discard of another block", local, []Command{advise, discarding(RAMDiscard{"rom", []Range{{0, 4096}}})}, PostcopyAdvised, ErrCommand},
		{"discard beyond the block", local, []Command{advise, discarding(RAMDiscard{"ram", []Range{{0, 4096}, {1 << 20, 4096}}})}, PostcopyAdvised, ErrBounds},
		{"a malformed discard", local, []Command{advise, {Type: CommandRAMDiscard}}, PostcopyAdvised, ErrCommand},
		{"a bitmap of another block", local, []Command{RecvBitmap("rom")}, PostcopyNone, ErrCommand},
		{"a malformed bitmap request", local, []Command{{Type: CommandRecvBitmap}}, PostcopyNone, ErrCommand},
		{"a bitmap of a block", local, []Command{RecvBitmap("ram")}, PostcopyNone, nil},
		{"discard first", local, []Command{discard}, PostcopyNone, ErrCommand},
		{"discard after listen", local, []Command{advise, PostcopyListen(), discard}, PostcopyListening, ErrCommand},
		{"listen first", local, []Command{PostcopyListen()}, PostcopyNone, ErrCommand},
		{"listen twice", local, []Command{advise, PostcopyListen(), PostcopyListen()}, PostcopyListening, ErrCommand},
		{"run before listen", local, []Command{advise, PostcopyRun()}, PostcopyAdvised, ErrCommand},
		{"ping without a return path", Incoming{}, []Command{Ping(1)}, PostcopyNone, ErrCommand},
		{"COLO where it is not wanted", Incoming{}, []Command{EnableCOLO()}, PostcopyNone, ErrCommand},
		{"COLO where it is", Incoming{COLO: true}, []Command{EnableCOLO(), SwitchoverStart(), RecvBitmap("ram")}, PostcopyNone, nil},
		{"an unknown command", Incoming{}, []Command{{Type: 99}}, PostcopyNone, ErrCommand},
	} {
		in := x.in
		for i, c := range x.seq {
			act, err := in.Accept(c)
			if last := i == len(x.seq)-1; last && x.err != nil {
				wantError(t, x.why, err, x.err)
			} else if err != nil || !act {
				t.Errorf("%s: %v: %t %v", x.why, c, act, err)
			}
		}
		if in.Postcopy() != x.want {
			t.Errorf("%s: state %v, want %v", x.why, in.Postcopy(), x.want)
		}
		if in.COLOEnabled() != (x.in.COLO) {
			t.Errorf("%s: COLO %t", x.why, in.COLOEnabled())
		}
	}
}

func TestIncomingIgnoresWhatQEMUIgnores(t *testing.T) {
	var in Incoming
	for i, want := range []bool{true, false, false} {
		if act, err := in.Accept(OpenReturnPath()); act != want || err != nil || !in.ReturnPath() {
			t.Errorf("open %d: %t %v", i, act, err)
		}
	}
	if act, err := in.Accept(PostcopyResume()); act || err != nil {
		t.Errorf("resume of nothing: %t %v", act, err)
	}
	in.Pause()
	if act, err := in.Accept(PostcopyResume()); !act || err != nil {
		t.Errorf("resume: %t %v", act, err)
	}
	if in.End(); in.Postcopy() != PostcopyEnded {
		t.Errorf("state %v", in.Postcopy())
	}
}

func FuzzCommand(f *testing.F) {
	for _, c := range []Command{OpenReturnPath(), Ping(1), PostcopyAdvise{RAM: true}.Command(), RecvBitmap("ram"), EnableCOLO(), {Type: CommandPackaged, Payload: make([]byte, 4)}} {
		f.Add(written(f, func(w *qemufile.Writer) { PutCommand(w, c) })[1:])
	}
	f.Add(written(f, func(w *qemufile.Writer) { PutRAMDiscard(w, RAMDiscard{"ram", []Range{{0, 4096}, {1 << 40, 1}}}) })[1:])
	for _, x := range badCommands {
		f.Add(hexBytes(f, x))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		r := reader(p)
		c, err := ReadCommand(r)
		if err != nil {
			if !errors.Is(err, ErrCommand) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("error of unknown kind: %v", err)
			}
			return
		}
		again := written(t, func(w *qemufile.Writer) {
			if d, err := c.AsRAMDiscard(); err == nil && len(d.Ranges) <= maxDiscards {
				PutRAMDiscard(w, d)
			} else if a, err := c.AsPostcopyAdvise(); err == nil {
				PutCommand(w, a.Command())
			} else {
				PutCommand(w, c)
			}
		})
		if !bytes.Equal(again[1:], p[:r.Offset()]) {
			t.Fatalf("%x becomes %x", p[:r.Offset()], again[1:])
		}
		in := Incoming{COLO: true, PostcopyRAM: true}
		in.Accept(c)
	})
}
