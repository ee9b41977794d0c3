package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// image makes a disk image of random content.
func image(t testing.TB, name string, size int) (*replication.File, []byte) {
	t.Helper()
	p := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(size)})
	rng.Read(p)
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, p, 0o600))
	d, err := replication.OpenFile(path)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d, p
}

// export serves a disk on a Unix socket and returns its path and nbd URI.
func export(t testing.TB, cfg nbd.ExportConfig) (e *nbd.Export, path, uri string) {
	t.Helper()
	srv := nbd.NewServer(nbd.ServerConfig{})
	e, err := srv.Export(cfg)
	must(t, err)
	path = filepath.Join(socket.Dir(t), "nbd")
	serveAt(t, srv, path)
	return e, path, "nbd+unix:///" + e.WireName() + "?socket=" + path
}

// serveAt serves at an address until the test ends, and returns where.
func serveAt(t testing.TB, srv *nbd.Server, addr string) string {
	t.Helper()
	ln, err := net.Listen(network(addr), addr)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(ctx, ln) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return ln.Addr().String()
}

// tool runs a program to its end and returns what it printed.
func tool(t testing.TB, what, name string, args ...string) string {
	t.Helper()
	path := require.Program(t, what, name)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// network tells a Unix socket from a TCP address.
func network(addr string) string {
	if strings.HasPrefix(addr, "/") {
		return "unix"
	}
	return "tcp"
}

// background runs a program until the test ends, and waits until it listens.
func background(t testing.TB, what, addr, name string, args ...string) {
	t.Helper()
	path := require.Program(t, what, name)
	var out bytes.Buffer
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() && out.Len() > 0 {
			t.Logf("%s: %s", name, out.String())
		}
	})
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial(network(addr), addr); err == nil {
			c.Close()
			return
		}
	}
	t.Fatalf("%s does not listen", name) // what it said comes with the end of the test
}

func contents(t testing.TB, d io.ReaderAt, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if k, err := d.ReadAt(p, 0); k < n {
		t.Fatal(err)
	}
	return p
}

func TestQEMUIOWritesIntoASecondary(t *testing.T) {
	const size = 4 << 20
	ctx := context.Background()
	disk, before := image(t, "secondary", size)
	s, err := replication.NewSecondary(disk, replication.SecondaryConfig{})
	must(t, err)
	must(t, s.Start(ctx))
	_, _, uri := export(t, nbd.ExportConfig{Name: "disk0", Generation: 4, Disk: s.Export()})
	tool(t, require.QEMU, "qemu-io", "-f", "raw", "-c", "write -P 0x22 64k 128k", "-c", "write -f -P 0x33 1000 24", "-c", "write -z 1M 64k",
		"-c", "discard 2M 64k", "-c", "aio_write -P 0x44 3M 64k", "-c", "aio_write -P 0x55 3200k 512", "-c", "aio_flush", "-c", "flush", "-c", "read -P 0x22 64k 128k", uri)
	if !bytes.Equal(contents(t, s, size), before) {
		t.Error("the secondary's guest sees the primary's writes before the checkpoint")
	}
	must(t, s.Checkpoint(ctx, 1))
	after := contents(t, s, size)
	for _, w := range []struct {
		off, n int
		b      byte
	}{{64 << 10, 128 << 10, 0x22}, {1000, 24, 0x33}, {1 << 20, 64 << 10, 0}, {3 << 20, 64 << 10, 0x44}, {3200 << 10, 512, 0x55}} {
		if !bytes.Equal(after[w.off:w.off+w.n], bytes.Repeat([]byte{w.b}, w.n)) {
			t.Errorf("%d bytes at %d are not %#x", w.n, w.off, w.b)
		}
	}
	out, _ := exec.Command("qemu-io", "-f", "raw", "-c", "read 0 512", strings.Replace(uri, "@4", "@3", 1)).CombinedOutput()
	if !strings.Contains(string(out), "generation 3") {
		t.Errorf("a primary of an older generation: %s", out)
	}
}

func TestQEMUImgConvertsToAndFromAnExport(t *testing.T) {
	const size = 3<<20 + 512
	_, want := image(t, "source", size)
	source := filepath.Join(t.TempDir(), "source")
	must(t, os.WriteFile(source, want, 0o600))
	disk, _ := image(t, "target", size)
	e, _, uri := export(t, nbd.ExportConfig{Name: "d", Disk: disk})
	tool(t, require.QEMU, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", source, uri)
	if !bytes.Equal(contents(t, disk, size), want) {
		t.Error("the copy differs")
	}
	if out := tool(t, require.QEMU, "qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri); !strings.Contains(out, "identical") {
		t.Error(out)
	}
	for e.Clients() > 0 {
		time.Sleep(time.Millisecond)
	}
	back := filepath.Join(t.TempDir(), "back")
	tool(t, require.QEMU, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
	p, err := os.ReadFile(back)
	must(t, err)
	if !bytes.Equal(p, want) {
		t.Error("the copy back differs")
	}
}

func TestLibnbdAsClient(t *testing.T) {
	const size = 8 << 20
	disk, before := image(t, "export", size)
	_, _, uri := export(t, nbd.ExportConfig{Name: "d", Disk: disk, MaxClients: 8, Description: "a test disk"})
	info := tool(t, require.NBD, "nbdinfo", uri)
	for _, want := range []string{"export-size: 8388608", "can_fua: true", "can_zero: true", "can_trim: true", "can_multi_conn: true", "block_size_maximum: 33554432", "a test disk"} {
		if !strings.Contains(info, want) {
			t.Errorf("nbdinfo does not say %q:\n%s", want, info)
		}
	}
	if list := tool(t, require.NBD, "nbdinfo", "--list", strings.Replace(uri, "/d?", "/?", 1)); !strings.Contains(list, `export="d"`) {
		t.Errorf("list: %s", list)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	tool(t, require.NBD, "nbdcopy", uri, copied)
	p, err := os.ReadFile(copied)
	must(t, err)
	if !bytes.Equal(p, before) {
		t.Error("the copy differs")
	}
	for i := range p {
		p[i] ^= 0xff
	}
	must(t, os.WriteFile(copied, p, 0o600))
	tool(t, require.NBD, "nbdcopy", "--flush", "--requests=32", copied, uri)
	if !bytes.Equal(contents(t, disk, size), p) {
		t.Error("the copy back differs")
	}
}

// What comes through a QEMU that is a client of the server, and a server itself, is what came.
func TestAnotherQEMUAsClient(t *testing.T) {
	const size = 4 << 20
	disk, err := replication.CreateFile(filepath.Join(t.TempDir(), "disk"), size)
	must(t, err)
	defer disk.Close()
	e, at, _ := export(t, nbd.ExportConfig{Name: "d", Disk: disk, MaxClients: 4})
	socket := filepath.Join(socket.Dir(t), "q")
	background(t, require.QEMU, socket, "qemu-storage-daemon",
		"--blockdev", "driver=nbd,node-name=n,server.type=unix,server.path="+at+",export="+e.WireName()+",discard=unmap",
		"--nbd-server", "addr.type=unix,addr.path="+socket, "--export", "type=nbd,id=e,node-name=n,name=x,writable=on")
	exercise(t, socket, "x", size)
}

// exercise uses a real server's export of size bytes that was zero.
func exercise(t *testing.T, socket, name string, size int64) {
	t.Helper()
	c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{Export: name})
	must(t, err)
	defer c.Close()
	if c.Size() != size {
		t.Fatalf("size %d", c.Size())
	}
	if _, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{Export: "no such"}); name != "" && !errors.Is(err, nbd.ErrUnknownExport) {
		t.Errorf("an export that is not there: %v", err)
	}
	want := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	for i := range int64(64) {
		off := i * size / 64
		p := make([]byte, 512*(1+rng.IntN(int(size)/64/512)))
		for j := range p {
			p[j] = byte(rng.Uint32())
		}
		copy(want[off:], p)
		wg.Go(func() {
			var err error
			if i%2 == 0 {
				_, err = c.WriteAt(p, off)
			} else {
				err = c.WriteFUA(p, off)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must(t, c.Sync())
	must(t, c.WriteZeroes(size/2, size/4))
	clear(want[size/2 : size/2+size/4])
	must(t, c.Trim(0, 4096))
	got := contents(t, c, int(size))
	if !bytes.Equal(got[4096:], want[4096:]) {
		t.Error("what was read is not what was written")
	}
}

func TestQEMUNBDAsServer(t *testing.T) {
	const size = 4 << 20
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, make([]byte, size), 0o600))
	socket := filepath.Join(socket.Dir(t), "s")
	background(t, require.QEMU, socket, "qemu-nbd", "-t", "-f", "raw", "-x", "d", "-e", "4", "-k", socket, disk)
	exercise(t, socket, "d", size)
}

func TestNbdkitAsServer(t *testing.T) {
	socket := filepath.Join(socket.Dir(t), "s")
	background(t, require.NBD, socket, "nbdkit", "-f", "-U", socket, "memory", "4M")
	exercise(t, socket, "", 4<<20)
}

func TestNbdkitThatAnswersLateAndOutOfOrder(t *testing.T) {
	socket := filepath.Join(socket.Dir(t), "s")
	background(t, require.NBD, socket, "nbdkit", "-f", "-U", socket, "--filter=delay", "memory", "4M", "delay-read=2ms", "delay-write=3ms")
	exercise(t, socket, "", 4<<20)
}

func TestErrorsOfNbdkitAreTheRequests(t *testing.T) {
	socket := filepath.Join(socket.Dir(t), "s")
	background(t, require.NBD, socket, "nbdkit", "-f", "-U", socket, "--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
	c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{})
	must(t, err)
	defer c.Close()
	_, err = c.WriteAt(make([]byte, 512), 0)
	var re *nbd.RequestError
	if !errors.As(err, &re) || fmt.Sprint(re.Errno) != "no space left on device" {
		t.Errorf("write: %v", err)
	}
	_, err = c.ReadAt(make([]byte, 512), 0)
	must(t, err)
}

func TestPrimaryForwardsToQEMUNBD(t *testing.T) {
	const size = 4 << 20
	ctx := context.Background()
	remote := filepath.Join(t.TempDir(), "remote")
	must(t, os.WriteFile(remote, make([]byte, size), 0o600))
	socket := filepath.Join(socket.Dir(t), "s")
	background(t, require.QEMU, socket, "qemu-nbd", "-t", "-f", "raw", "-e", "4", "-k", socket, remote)
	local, _ := image(t, "local", size)
	p, err := replication.NewPrimary(local, replication.PrimaryConfig{Overwrite: true})
	must(t, err)
	c, err := nbd.Dial(ctx, "unix", socket, nbd.ClientConfig{})
	must(t, err)
	must(t, p.Attach(c))
	must(t, p.Synchronise(ctx, replication.SyncConfig{Sums: replication.NewSums(readOnly{c})}))
	must(t, p.Start(ctx))
	for i := range int64(200) {
		_, err := p.WriteAt(bytes.Repeat([]byte{byte(i)}, 3000), i*1000)
		must(t, err)
	}
	must(t, p.WriteZeroes(1<<20, 1<<20))
	must(t, p.Mark(ctx, 1))
	got, err := os.ReadFile(remote)
	must(t, err)
	if !bytes.Equal(got, contents(t, local, size)) {
		t.Error("the disks differ at the mark")
	}
	must(t, p.Stop(ctx, false))
}

// readOnly is a connection as a disk that is only read.
type readOnly struct{ *nbd.Client }

func TestWritesThroughToNbdkitThatDoesNotKnowFUA(t *testing.T) {
	const size = 4 << 20
	socket := filepath.Join(socket.Dir(t), "s")
	background(t, require.NBD, socket, "nbdkit", "-f", "-U", socket, "--filter=fua", "memory", "4M")
	c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{MaxRequests: 4})
	must(t, err)
	defer c.Close()
	if i := c.Info(); i.FUA || !i.Flush {
		t.Fatalf("info %+v, want a server with flush and without FUA", i)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run, wg sync.WaitGroup
	run.Go(func() {
		for c.Progress(ctx) == nil {
		}
	})
	for w := range int64(16) {
		wg.Go(func() {
			p := bytes.Repeat([]byte{byte(w)}, 4096)
			for i := range int64(20) {
				done := make(chan error, 1)
				c.StartWrite(p, w<<18+i*4096, true, func(err error) { done <- err })
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	run.Wait()
	got := contents(t, c, size)
	for w := range 16 {
		wantBytes(t, got[w<<18:][:20*4096], byte(w))
	}
}

func wantBytes(t *testing.T, p []byte, b byte) {
	t.Helper()
	if !bytes.Equal(p, bytes.Repeat([]byte{b}, len(p))) {
		t.Errorf("%d bytes are not all %#x", len(p), b)
	}
}
