package main

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/linuxguest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start begins the work and returns where it is to be heard.
func start(t *testing.T) (reports, chunks, file string, done <-chan error) {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	r, c := listen(), listen()
	file = filepath.Join(t.TempDir(), "log")
	ended := make(chan error, 1)
	go func() { ended <- work(r, c, file) }()
	return r.Addr().String(), c.Addr().String(), file, ended
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestTheClientBelievesTheJobs(t *testing.T) {
	reports, chunks, file, ended := start(t)
	client := linuxguest.NewClient(dial(t, reports), dial(t, chunks))
	heard := make(chan error, 1)
	go func() { heard <- client.Run(t.Context()) }()
	entries := uint64(3)
	if testing.Short() {
		entries = 1 // one comes every tenth of a second
	}
	for {
		p, err := client.Progress()
		if err != nil {
			t.Fatal(err)
		}
		if p.Record.Synced >= entries && p.Record.Pass >= 3 && p.Record.Counter > 0 && p.Chunks >= 3 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := client.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-heard; err != nil {
		t.Errorf("the client: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the jobs: %v", err)
	}
	p, _ := client.Progress()
	log, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := linuxguest.CheckLog(log, p.Record.Synced); err != nil || n != p.Record.Synced {
		t.Errorf("the last record says %d entries, the log has %d: %v", p.Record.Synced, n, err)
	}
}

func TestAClientThatLeavesIsAnError(t *testing.T) {
	reports, _, _, ended := start(t)
	dial(t, reports).Close()
	if err := <-ended; err == nil {
		t.Error("nobody said stop, and the jobs ended well")
	}
}

func TestChunksMustBeAskedForInOrder(t *testing.T) {
	reports, chunks, _, ended := start(t)
	r, c := dial(t, reports), dial(t, chunks)
	if _, err := c.Write(binary.BigEndian.AppendUint64(nil, 1)); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(make([]byte, 1)); err == nil {
		t.Errorf("read %d bytes of a chunk out of order", n)
	}
	if _, err := r.Write([]byte("stop\n")); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestAWrongCommandLineIsAnError(t *testing.T) {
	for _, args := range []string{"", "1 2", "1 2 3 4", "x y z"} {
		if err := run(strings.Fields(args)); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}
