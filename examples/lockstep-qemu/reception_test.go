package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// migrationBeginning returns the first bytes of a migration, up to the header of its first
// section.
func migrationBeginning(machine string) []byte {
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: machine})
	vmstate.PutCommand(w, vmstate.EnableCOLO())
	h := vmstate.Header{Type: vmstate.SectionStart, ID: 2, Name: "ram", Version: 4}
	h.Put(w)
	w.Flush()
	return b.Bytes()
}

// taken has the results of acceptPrimary.
type taken struct {
	conn *watched
	err  error
}

// receive lets acceptPrimary look at whoever connects to a socket.
func receive(t *testing.T, peer time.Duration) (sock string, refused *refusals, got <-chan taken) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(qemutest.Dir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &standbyRun{standbyOptions: standbyOptions{peer: peer}}
	refused = &refusals{more: make(chan struct{}, 100)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan taken, 1)
	var all sync.WaitGroup
	all.Go(func() {
		conn, _, err := s.acceptPrimary(ctx, l, nil, refused.add)
		done <- taken{conn, err}
	})
	t.Cleanup(func() { cancel(); all.Wait() })
	return l.Addr().String(), refused, done
}

type refusals struct {
	mu   sync.Mutex
	list []string
	more chan struct{}
}

func (r *refusals) add(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, err.Error())
	r.more <- struct{}{}
}

func (r *refusals) await(t *testing.T, n int) string {
	t.Helper()
	for range n {
		select {
		case <-r.more:
		case <-time.After(time.Minute):
			t.Fatalf("%q", r.list)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.list, "\n")
}

func dial(t *testing.T, sock string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// Whatever part of a migration's beginning a stranger sends, and then nothing, the
// QEMU that comes after it is taken, and no byte of it is lost.
func TestWhoeverBeginsAMigrationAndStopsDoesNotKeepTheTruePrimaryOut(t *testing.T) {
	begun := migrationBeginning("pc-i440fx-7.2")
	for _, n := range []int{0, 3, 4, 8, 9, 13, 20, 26, 27, 31, 32, 36, len(begun) - 1} {
		sock, _, got := receive(t, time.Hour)
		dial(t, sock).Write(begun[:n])
		conn := dial(t, sock)
		sent := append(bytes.Clone(begun), "and what follows"...)
		conn.Write(sent)
		c := <-got
		if c.err != nil {
			t.Fatalf("after a stranger with %d bytes: %v", n, c.err)
		}
		conn.Close()
		defer c.conn.Close()
		if all, err := io.ReadAll(c.conn); err != nil || !bytes.Equal(all, sent) {
			t.Errorf("after a stranger with %d bytes: %q, %v", n, all, err)
		}
		if uint64(len(sent)) != c.conn.received.Load() {
			t.Errorf("%d bytes are counted, not %d", c.conn.received.Load(), len(sent))
		}
	}
}

// The beginning in single bytes is one, too.
func TestABeginningInSingleBytesIsTaken(t *testing.T) {
	sock, _, got := receive(t, time.Hour)
	conn := dial(t, sock)
	begun := migrationBeginning("pc")
	for i := range begun {
		conn.Write(begun[i : i+1])
	}
	c := <-got
	if c.err != nil {
		t.Fatal(c.err)
	}
	c.conn.Close()
}

func TestWhatIsNoBeginningOfAMigrationIsRefusedWithTheReason(t *testing.T) {
	header := []byte("QEVM\x00\x00\x00\x03")
	for _, c := range []struct {
		says, why string
		closes    bool
	}{
		{"GET / HTTP/1.1\r\n", `it says "GET "`, false},
		{"QEVM\x00\x00\x00\x09", "version", false},
		{string(header), "after 8 bytes", true},
		{string(header) + "\x09", "comes first", false},
		{string(header) + "\x00", "comes first", false},
		{string(header) + "\x07\xff\xff\xff\xff", "after 13 bytes", false},
		{string(header) + strings.Repeat("\x08\x00\x02\x00\x04beef", maxBeginning), "after 16384 bytes", false}, // pings
	} {
		sock, refused, _ := receive(t, time.Hour)
		conn := dial(t, sock)
		go func() {
			conn.Write([]byte(c.says))
			if c.closes {
				conn.Close()
			}
		}()
		if all := refused.await(t, 1); !strings.Contains(all, c.why) {
			t.Errorf("%.20q: %q, not %q", c.says, all, c.why)
		}
	}
}

func TestAStrangerIsGivenNoLongerThanASilentPrimary(t *testing.T) {
	sock, refused, _ := receive(t, time.Millisecond)
	dial(t, sock)
	dial(t, sock).Write(migrationBeginning("pc")[:20])
	if all := refused.await(t, 2); strings.Count(all, "i/o timeout") != 2 {
		t.Errorf("%q", all)
	}
}

// 0 is the library's own time, and less than that no bound: neither refuses everybody.
func TestAPrimaryIsTakenWhateverItsTimeout(t *testing.T) {
	for _, peer := range []time.Duration{0, -1, -time.Hour} {
		sock, refused, got := receive(t, peer)
		conn := dial(t, sock)
		conn.Write(migrationBeginning("pc"))
		select {
		case c := <-got:
			if c.err != nil {
				t.Fatal(c.err)
			}
			c.conn.Close()
		case <-refused.more:
			t.Errorf("%v: %q", peer, refused.list)
		case <-time.After(time.Minute):
			t.Fatalf("%v: it waits", peer)
		}
	}
}

// Whoever can connect to a standby can do so as often as he likes.
func TestStrangersDoNotFillTheLogOfAStandby(t *testing.T) {
	t.Parallel()
	out, said := new(printed), new(printed)
	s := &standbyRun{p: &printer{terminal: terminal{out: out, err: said}}}
	told := 0
	for port := range 1000 {
		if s.stranger(fmt.Errorf("10.0.0.9 has begun no migration: 0 bytes, read tcp 10.0.0.1:9998->10.0.0.9:%d: i/o timeout", 1024+port)) {
			told++
		}
	}
	if n := said.count("not protected: "); n != told || n == 0 || n > maxTold {
		t.Errorf("%d lines, of which %d were known of", n, told)
	}
	if n := s.tally.refused.Load(); n != 1000 {
		t.Errorf("%d are counted", n)
	}
}
