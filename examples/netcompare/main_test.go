package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/internal/socket"
)

const (
	compareFile  = "../../colo/compare/testdata/compare.json"
	rewriterFile = "../../colo/filter/testdata/rewriter.json"
)

func TestAllCasesPassEitherWay(t *testing.T) {
	for _, args := range [][]string{
		{"-vectors", compareFile}, {"-strict", "-vectors", compareFile}, {"-vectors", "../../colo/compare/testdata/more.json"},
		{"-rewriter", rewriterFile}, {"-strict", "-rewriter", rewriterFile},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), args, &out, io.Discard); err != nil {
			t.Errorf("%v: %v\n%s", args, err, out.String())
		}
		if !strings.HasSuffix(out.String(), " passed, 0 failed\n") {
			t.Errorf("%v: %s", args, out.String())
		}
	}
}

func TestCaseThatFailsSaysAtWhichStep(t *testing.T) {
	b, err := os.ReadFile(compareFile)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Replace(b, []byte(`"notify": 0`), []byte(`"notify": 1`), 1)
	name := filepath.Join(t.TempDir(), "cases.json")
	if err := os.WriteFile(name, b, 0o666); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"-vectors", name}, &out, io.Discard); !errors.Is(err, errFailed) {
		t.Errorf("%v", err)
	}
	if !strings.Contains(out.String(), "step 1: got -, want !\n") || !strings.Contains(out.String(), ", 1 failed\n") {
		t.Errorf("%s", out.String())
	}
}

func TestStepMayHaveItsOwnRecommendation(t *testing.T) {
	name := filepath.Join(t.TempDir(), "cases.json")
	const file = `{"cases": [
		{"name": "one", "steps": [{"op": "primary", "id": "A", "hex": "00", "out": [], "notify": 1, "recommended": {"out": ["A"]}}]},
		{"name": "two", "recommended": ["A"], "steps": [{"op": "primary", "id": "A", "hex": "00", "out": [], "notify": 1}]},
		{"name": "three", "recommended": ["A", "-"], "steps": [{"op": "primary", "id": "A", "hex": "00", "out": ["A"]}]}]}`
	if err := os.WriteFile(name, []byte(file), 0o666); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(t.Context(), []string{"-vectors", name}, &out, io.Discard)
	const want = "one: ok\ntwo: ok\nthree: 2 recommendations for 1 steps\n2 passed, 1 failed\n"
	if out.String() != want || !errors.Is(err, errFailed) {
		t.Errorf("%s%v", out.String(), err)
	}
}

// What compares nothing has not passed.
func TestAFileWithoutCasesOrOfAnotherKindDoesNotPass(t *testing.T) {
	for file, want := range map[string]string{
		`{}`:                           "cases.json has no cases",
		`{"vectors": [{"name": "x"}]}`: "cases.json has no cases",
		`{"cases": [{"name": "empty"}, {"name": "empty too", "steps": []}]}`: "empty: it has no steps\nempty too: it has no steps\n0 passed, 2 failed\n",
	} {
		name := filepath.Join(t.TempDir(), "cases.json")
		if err := os.WriteFile(name, []byte(file), 0o666); err != nil {
			t.Fatal(err)
		}
		for _, of := range []string{"-vectors", "-rewriter"} {
			var out bytes.Buffer
			if err := run(t.Context(), []string{of, name}, &out, io.Discard); err == nil || !strings.Contains(out.String()+err.Error(), want) {
				t.Errorf("%s %s: %s%v", of, file, out.String(), err)
			}
		}
	}
	for _, args := range [][]string{{"-vectors", rewriterFile, "(-rewriter takes a rewriter's)"}, {"-rewriter", compareFile, "(-vectors takes a comparison's)"}} {
		var out bytes.Buffer
		if err := run(t.Context(), args[:2], &out, io.Discard); !errors.Is(err, errFailed) || !strings.Contains(out.String(), args[2]) {
			t.Errorf("%v: %s%v", args, out.String(), err)
		}
	}
}

// record writes a capture of packets, one a second.
func record(t *testing.T, packets ...string) string {
	t.Helper()
	var file bytes.Buffer
	now := time.Unix(100, 0)
	d, err := filter.NewDump(&file, 0, func() time.Time { now = now.Add(time.Second); return now })
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range packets {
		b, err := hex.DecodeString(p)
		if err != nil {
			t.Fatal(err)
		}
		d.Process(filter.Place{}, filter.FromGuest, filter.Frame{Data: b})
	}
	name := filepath.Join(t.TempDir(), "guest.pcap")
	if err := os.WriteFile(name, file.Bytes(), 0o666); err != nil {
		t.Fatal(err)
	}
	return name
}

// Three datagrams, AAAA, BBBB and CCCC.
const (
	udpA = "52a40012786752a40012786608004500002000010000401166ca0a0000010a00000200351388000c559441414141"
	udpB = "52a40012786752a40012786608004500002000010000401166ca0a0000010a00000200351388000c539242424242"
	udpC = "52a40012786752a40012786608004500002000010000401166ca0a0000010a00000200351388000c519043434343"
)

func TestReplayShowsWhatLeftAndWhatDiverged(t *testing.T) {
	p, s := record(t, udpA, udpB, udpA), record(t, udpA, udpC, udpA)
	var out bytes.Buffer
	if err := run(t.Context(), []string{p, s}, &out, io.Discard); !errors.Is(err, errDiverged) {
		t.Fatal(err)
	}
	for _, want := range []string{
		"    0.000000 secondary      1  left 1\n",
		"  diverged: packet, 10.0.0.1:53 > 10.0.0.2:5000 proto 17, at offset 6:\n" +
			"                primary 53 92 42 42 42 42                                 S.BBBB\n" +
			"              secondary 51 90 43 43 43 43                                 Q.CCCC\n",
		" checkpoint      1  left 1\n",
		"3 packets of the primary, 3 of the secondary: 2 matched, 0 uncompared, 1 at 1 checkpoints, 0 wait\n",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwant\n%s", out.String(), want)
		}
	}
	out.Reset()
	if err := run(t.Context(), []string{"-json", p, s}, &out, io.Discard); !errors.Is(err, errDiverged) {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var last struct{ Summary map[string]int }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || last.Summary["matched"] != 2 || last.Summary["checkpoints"] != 1 {
		t.Errorf("%s: %v", lines[len(lines)-1], err)
	}
	found := false
	for _, l := range lines {
		var d struct {
			Diverged, Primary, Secondary string
			Offset                       int
		}
		if json.Unmarshal([]byte(l), &d) == nil && d.Diverged == "packet" {
			found = d.Offset == 6 && d.Primary == "539242424242" && d.Secondary == "519043434343"
		}
	}
	if !found {
		t.Errorf("%s", out.String())
	}
}

// guests listens in the place of two QEMUs, or dials, and each says its packets.
func guests(t *testing.T, dial bool, cfg filter.ConnConfig, packets [2][]string) (addrs []string, done func()) {
	t.Helper()
	var wg sync.WaitGroup
	for _, said := range packets {
		path := filepath.Join(socket.Dir(t), "s")
		addrs = append(addrs, "unix:"+path)
		var l net.Listener
		if !dial {
			var err error
			if l, err = net.Listen("unix", path); err != nil {
				t.Fatal(err)
			}
		}
		wg.Go(func() {
			var c net.Conn
			var err error
			if dial {
				for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
					if c, err = net.Dial("unix", path); err == nil || time.Now().After(end) {
						break
					}
				}
			} else {
				c, err = l.Accept()
				l.Close()
			}
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			conn := filter.NewConn(c, cfg)
			for _, p := range said {
				b, err := hex.DecodeString(p)
				if err != nil {
					t.Error(err)
				}
				if err := conn.WritePacket(append(make([]byte, cfg.VNetHdrLen), b...)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	return addrs, wg.Wait
}

func TestStreamsAreComparedAsTheyCome(t *testing.T) {
	for _, c := range []struct {
		args []string
		dial bool
		cfg  filter.ConnConfig
	}{
		{nil, false, filter.ConnConfig{}},
		{[]string{"-listen"}, true, filter.ConnConfig{}},
		{[]string{"-vnet"}, false, filter.ConnConfig{VNetHdr: true, VNetHdrLen: 12}},
	} {
		addrs, done := guests(t, c.dial, c.cfg, [2][]string{{udpA, udpB, udpC}, {udpA, udpB, udpC}})
		var out bytes.Buffer
		err := run(t.Context(), append(append([]string{"-json"}, c.args...), addrs...), &out, io.Discard)
		done()
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		var last struct{ Summary map[string]int }
		if err != nil || json.Unmarshal([]byte(lines[len(lines)-1]), &last) != nil ||
			last.Summary["primary"] != 3 || last.Summary["matched"] != 3 || last.Summary["checkpoints"] != 0 {
			t.Errorf("%v: %v\n%s", c.args, err, out.String())
		}
	}
}

// told says when something has been written to it.
type told struct {
	bytes.Buffer
	first chan bool
	once  sync.Once
}

func (w *told) Write(p []byte) (int, error) {
	defer w.once.Do(func() { close(w.first) })
	return w.Buffer.Write(p)
}

func TestStreamsEndWithTheContextAndWithWhatIsNoStream(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	frame, err := hex.DecodeString(udpA)
	if err != nil {
		t.Fatal(err)
	}
	addr := "tcp:" + l.Addr().String()
	ctx, cancel := context.WithCancel(t.Context())
	out := &told{first: make(chan bool)}
	ended := make(chan error)
	go func() { ended <- run(ctx, []string{addr, addr}, out, io.Discard) }()
	for range 2 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := filter.NewConn(c, filter.ConnConfig{}).WritePacket(frame); err != nil {
			t.Fatal(err)
		}
	}
	<-out.first // both are connected
	cancel()
	if err := <-ended; err != nil || !strings.Contains(out.String(), "1 matched") {
		t.Errorf("%v: %s", err, out.String())
	}

	go func() { ended <- run(t.Context(), []string{addr, addr}, out, io.Discard) }()
	for range 2 {
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write([]byte{0, 0, 0, 0})
	}
	if err := <-ended; !errors.Is(err, filter.ErrFrame) {
		t.Errorf("%v", err)
	}
	if err := run(t.Context(), []string{addr, "some.pcap"}, out, io.Discard); err == nil {
		t.Error("a stream and a capture do not go together")
	}
}
