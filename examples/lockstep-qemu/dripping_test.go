package main

import (
	"bytes"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// Whoever begins a migration, and then sends a page that is zeros now and then, would otherwise be the one primary
// of a standby for ever, and the guest that it is there for would never be protected.
func TestAMigrationThatGetsNowhereMakesRoomForTheNext(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	t.Parallel()
	sock := filepath.Join(qemutest.Dir(t), "s")
	s := start(t, "standby", "-json", "-listen", "unix:"+sock, "-state", qemutest.Dir(t), "-peer-timeout", "1s")
	s.object("listening", 0)
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.Write(migrationBeginning("pc-i440fx-7.2"))
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	record := func(r ram.Record) []byte {
		b.Reset()
		r.Put(w, ram.Format{})
		w.Flush()
		return b.Bytes()
	}
	const size = 1 << 20
	conn.Write(record(ram.Record{Kind: ram.KindBlockList, Total: size, Blocks: []ram.BlockInfo{{Name: "pc.ram", Length: size}}}))
	conn.Write(record(ram.Record{Kind: ram.KindEOS}))
	vmstate.PutFooter(w, 2)
	h := vmstate.Header{Type: vmstate.SectionPart, ID: 2}
	h.Put(w)
	b.Reset()
	w.Flush()
	conn.Write(b.Bytes())
	over := make(chan struct{})
	defer func() { <-over }()
	defer conn.Close()
	go func() {
		defer close(over)
		for page := record(ram.Record{Kind: ram.KindZero, Block: "pc.ram"}); ; time.Sleep(100 * time.Millisecond) {
			if _, err := conn.Write(page); err != nil {
				return
			}
		}
	}()
	if why := string(s.object("refused", 0)); !strings.Contains(why, "less than 1024 bytes a second") && !strings.Contains(why, "silent") {
		t.Errorf("refused: %s", why)
	}
	s.object("listening", 1)
	dial(t, sock).Write([]byte("GET / HTTP/1.1\r\n\r\n"))
	if why := string(s.object("refused", 1)); !strings.Contains(why, "GET") {
		t.Errorf("the next is refused: %s", why)
	}
}
