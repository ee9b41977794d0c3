package nbd_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// qemu is a QEMU with disks and without a machine, driven over QMP.
type qemu struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func startQEMU(t *testing.T, args ...string) *qemu {
	t.Helper()
	socket := filepath.Join(socket.Dir(t), "qmp")
	args = append([]string{"-machine", "none", "-nodefaults", "-display", "none", "-qmp", "unix:" + socket + ",server=on,wait=off"}, args...)
	background(t, require.QEMU, socket, "qemu-system-x86_64", args...)
	conn, err := net.Dial("unix", socket)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	q := &qemu{t: t, conn: conn, r: bufio.NewReader(conn)}
	_, err = q.r.ReadString('\n') // the greeting
	must(t, err)
	q.do("qmp_capabilities", nil)
	return q
}

// try executes a QMP command and returns what it returns.
func (q *qemu) try(cmd string, args any) (json.RawMessage, error) {
	q.t.Helper()
	m := map[string]any{"execute": cmd}
	if args != nil {
		m["arguments"] = args
	}
	p, err := json.Marshal(m)
	must(q.t, err)
	q.conn.SetDeadline(time.Now().Add(time.Minute))
	_, err = q.conn.Write(append(p, '\n'))
	must(q.t, err)
	for {
		line, err := q.r.ReadBytes('\n')
		if err != nil {
			q.t.Fatalf("%s: %v", cmd, err)
		}
		var reply struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		must(q.t, json.Unmarshal(line, &reply))
		switch {
		case reply.Error != nil:
			return nil, errors.New(reply.Error.Desc)
		case reply.Return != nil:
			return reply.Return, nil
		}
	}
}

func (q *qemu) do(cmd string, args any) json.RawMessage {
	q.t.Helper()
	r, err := q.try(cmd, args)
	if err != nil {
		q.t.Fatalf("%s: %v", cmd, err)
	}
	return r
}

// io runs a command of qemu-io on a disk.
func (q *qemu) io(disk, cmd string) {
	q.t.Helper()
	var out string
	must(q.t, json.Unmarshal(q.do("human-monitor-command", map[string]any{"command-line": fmt.Sprintf("qemu-io %s %q", disk, cmd)}), &out))
	if strings.Contains(out, "rror") || strings.Contains(out, "fail") || strings.Contains(out, "mismatch") {
		q.t.Errorf("%s on %s: %s", cmd, disk, out)
	}
}

func (q *qemu) replicate(enable, primary, failover bool) {
	q.t.Helper()
	args := map[string]any{"enable": enable, "primary": primary}
	if !enable {
		args["failover"] = failover
	}
	q.do("xen-set-replication", args)
}

func fill(t *testing.T, path string, b byte, size int) {
	t.Helper()
	must(t, os.WriteFile(path, bytes.Repeat([]byte{b}, size), 0o600))
}

func wantFill(t *testing.T, why string, p []byte, b byte) {
	t.Helper()
	for i := range p {
		if p[i] != b {
			t.Fatalf("%s: at %d %#x, want %#x", why, i, p[i], b)
		}
	}
}

const qsize = 1 << 20

// QEMU's replication driver in primary mode, under quorum, writes into our
// secondary.
func TestQEMUPrimaryWithOurSecondary(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	local, remote := filepath.Join(dir, "primary"), filepath.Join(dir, "secondary")
	fill(t, local, 0x11, qsize)
	fill(t, remote, 0x11, qsize)
	disk, err := replication.OpenFile(remote)
	must(t, err)
	defer disk.Close()
	s, err := replication.NewSecondary(disk, replication.SecondaryConfig{})
	must(t, err)
	e, socket, _ := export(t, nbd.ExportConfig{Name: "disk0", Generation: 1, Disk: s.Export()})
	q := startQEMU(t,
		"-blockdev", `{"driver":"raw","node-name":"local","file":{"driver":"file","filename":"`+local+`"}}`,
		"-blockdev", `{"driver":"replication","node-name":"forward","mode":"primary","file":{"driver":"nbd","server":{"type":"unix","path":"`+socket+`"},"export":"disk0@1"}}`,
		"-drive", "if=none,id=top,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0=local,children.1=forward")
	must(t, s.Start(ctx))
	q.replicate(true, true, false)
	q.io("top", "write -P 0x22 512k 512k")
	q.io("top", "write -z 64k 64k")
	q.io("top", "flush")
	wantFill(t, "the secondary's guest sees the disk of the start", contents(t, s, qsize), 0x11)
	q.do("xen-colo-do-checkpoint", nil)
	must(t, s.Checkpoint(ctx, 1))
	p := contents(t, s, qsize)
	wantFill(t, "the checkpoint", p[512<<10:], 0x22)
	wantFill(t, "the checkpoint", p[64<<10:128<<10], 0)

	// The primary writes on and is lost; the secondary's guest has written
	// as well.
	q.io("top", "write -P 0x44 0 1M")
	_, err = s.WriteAt(bytes.Repeat([]byte{0x33}, 4096), 0)
	must(t, err)
	must(t, e.Gate(ctx))
	must(t, s.Stop(ctx, true))
	p, err = os.ReadFile(remote)
	must(t, err)
	wantFill(t, "its own write survives", p[:4096], 0x33)
	wantFill(t, "the checkpoint", p[4096:64<<10], 0x11)
	wantFill(t, "the checkpoint", p[64<<10:128<<10], 0)
	wantFill(t, "the checkpoint", p[512<<10:], 0x22)

	// The primary goes on as well, since nobody has told it; its next write
	// is refused here, which it only tells those who ask.
	q.io("top", "write -P 0x55 0 4k")
	if r := string(q.do("query-xen-replication-status", nil)); !strings.Contains(r, `"error": true`) {
		t.Errorf("the primary does not know: %s", r)
	}
	q.replicate(false, true, true)
}

// Our primary writes into QEMU's secondary.
func TestOurPrimaryWithQEMUSecondary(t *testing.T) {
	ctx := context.Background()
	dir := socket.Dir(t)
	path := func(name string) string { return filepath.Join(dir, name) }
	fill(t, path("secondary"), 0x11, qsize)
	fill(t, path("primary"), 0x11, qsize)
	for _, name := range []string{"active", "hidden"} {
		tool(t, require.QEMU, "qemu-img", "create", "-q", "-f", "qcow2", path(name), fmt.Sprint(qsize))
	}
	q := startQEMU(t,
		"-drive", "if=none,id=parent,driver=raw,file.filename="+path("secondary"),
		"-drive", "if=none,id=child,driver=replication,mode=secondary,top-id=top,file.driver=qcow2,file.file.filename="+path("active")+
			",file.backing.driver=qcow2,file.backing.file.filename="+path("hidden")+",file.backing.backing=parent",
		"-drive", "if=none,id=top,driver=quorum,read-pattern=fifo,vote-threshold=1,children.0=child")
	socket := path("nbd")
	q.do("nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": socket}}})
	q.do("nbd-server-add", map[string]any{"device": "parent", "writable": true})
	q.replicate(true, false, false)

	local, err := replication.OpenFile(path("primary"))
	must(t, err)
	defer local.Close()
	p, err := replication.NewPrimary(local, replication.PrimaryConfig{InSync: true})
	must(t, err)
	c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientConfig{Export: "parent"})
	must(t, err)
	must(t, replication.Preflight(ctx, local, replication.NewSums(c), 16))
	must(t, p.Attach(c))
	must(t, p.Start(ctx))
	write := func(b byte, off, n int64) {
		t.Helper()
		_, err := p.WriteAt(bytes.Repeat([]byte{b}, int(n)), off)
		must(t, err)
	}
	write(0x22, 512<<10, 512<<10)
	must(t, p.WriteZeroes(64<<10, 64<<10))
	must(t, p.Mark(ctx, 1))
	write(0x55, 0, 4096) // after the mark: held
	q.io("top", "read -P 0x11 0 1M")
	q.do("xen-colo-do-checkpoint", nil)
	q.io("top", "read -P 0x22 512k 512k")
	q.io("top", "read -P 0 64k 64k")
	q.io("top", "read -P 0x11 0 64k") // what was held is not in the checkpoint
	must(t, p.Loaded(ctx, 1))
	must(t, p.Sync())
	q.io("top", "read -P 0x11 0 64k")
	q.io("top", "write -P 0x33 256k 64k")
	must(t, p.Mark(ctx, 2))
	must(t, p.Loaded(ctx, 2))
	write(0x66, 768<<10, 4096)
	must(t, p.Sync())

	// Failover there: the export goes first.
	q.do("nbd-server-stop", nil)
	q.replicate(false, false, true)
	must(t, p.Stop(ctx, true))
	q.io("top", "read -P 0x33 256k 64k")
	q.io("top", "read -P 0x11 0 64k")
	q.io("top", "flush")
	q.do("quit", nil)
	got, err := os.ReadFile(path("secondary"))
	must(t, err)
	wantFill(t, "the last checkpoint", got[:64<<10], 0x11)
	wantFill(t, "the last checkpoint", got[64<<10:128<<10], 0)
	wantFill(t, "the secondary's own write", got[256<<10:320<<10], 0x33)
	wantFill(t, "the primary's writes since are undone", got[512<<10:], 0x22)
}
