package qmp_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/socket"
)

// listen serves a monitor on a Unix socket until the test ends.
func listen(t *testing.T, s *qmp.Server) (addr string) {
	t.Helper()
	addr = filepath.Join(socket.Dir(t), "s")
	l, err := qmp.Listen("unix:" + addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Serve: %v", err)
		}
	})
	return addr
}

func dial(t *testing.T, addr string) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UnixConn)
}

var stamps = regexp.MustCompile(`"seconds": \d+, "microseconds": \d+`)

// converse sends all of in and returns the lines that come until the server has
// nothing more to say, with the times taken out.
func converse(t *testing.T, addr string, negotiate bool, in []byte) (out []string) {
	t.Helper()
	conn := dial(t, addr)
	r := bufio.NewReader(conn)
	if negotiate {
		conn.Write([]byte(`{"execute":"qmp_capabilities"}`))
		for range 2 {
			if _, err := r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
	}
	go func() {
		conn.Write(in)
		conn.CloseWrite()
	}()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			if line != "" || err != io.EOF {
				t.Errorf("%q, %v", line, err)
			}
			return out
		}
		out = append(out, stamps.ReplaceAllString(line, `"seconds": 0, "microseconds": 0`))
	}
}

type vector struct {
	Name              string
	In                []byte
	Chunks            [][]byte
	BeforeNegotiation bool `json:"before_negotiation"`
	Args, Out         []string
	Closed            bool
}

// The file has what a QEMU 7.2.22 has answered, byte for byte, to commands that
// the host of this test has too, and to what is none.
func TestAnswersAreThoseOfQEMUByteForByte(t *testing.T) {
	text, err := os.ReadFile("testdata/qemu-7.2-commands.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []vector
	if err := json.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	for i, v := range all {
		if testing.Short() && i%3 != 0 {
			continue
		}
		t.Run(v.Name, func(t *testing.T) {
			h, s := newHost()
			switch {
			case slices.Contains(v.Args, "-S"):
				h.state = "prelaunch"
			case slices.Contains(v.Args, "-incoming"):
				h.state, h.incoming = "inmigrate", true
			}
			t.Cleanup(func() { // when the server has ended
				if want := map[bool]int{true: 1}[v.Closed]; h.quits != want {
					t.Errorf("it was told to quit %d times, want %d", h.quits, want)
				}
			})
			got := converse(t, listen(t, s), !v.BeforeNegotiation, v.In)
			if !slices.Equal(got, v.Out) {
				t.Errorf("%.200q\ngot  %.1500q\nwant %.1500q", v.In, got, v.Out)
			}
		})
	}
	if len(all) < 150 {
		t.Errorf("%d cases", len(all))
	}
}

func TestInputMayComeInAnyPieces(t *testing.T) {
	in := []byte("{\"execute\":\"query-name\",'id':'\\u00e9 \\'x'}\r\n\xff\n{\"execute\":\"nope\"} 1.5e3 {\"execute\":\"query-status\",\"id\":12}")
	_, s := newHost()
	addr := listen(t, s)
	want := converse(t, addr, true, in)
	if len(want) != 5 {
		t.Fatalf("%q", want)
	}
	for size := 1; size < 9; size++ {
		conn := dial(t, addr)
		r := bufio.NewReader(conn)
		go func() {
			conn.Write([]byte(`{"execute":"qmp_capabilities"}`))
			for part := range slices.Chunk(in, size) {
				conn.Write(part)
			}
			conn.CloseWrite()
		}()
		all, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.SplitAfter(all, []byte("\n"))
		if got := string(bytes.Join(lines[2:], nil)); got != strings.Join(want, "") {
			t.Errorf("pieces of %d: %q, want %q", size, got, want)
		}
	}
}
