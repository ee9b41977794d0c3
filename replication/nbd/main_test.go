package nbd

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
)

func TestMain(m *testing.M) {
	require.SeldomCollect()
	goleak.VerifyTestMain(m)
}

// ram is a Disk in memory, with all that a Disk may have.
type ram struct {
	mu           sync.Mutex
	data         []byte
	syncs, trims int
	hook         func(op string, off int64) error // without the lock
}

func newRAM(size int) *ram { return &ram{data: make([]byte, size)} }

func (d *ram) Size() int64 { return int64(len(d.data)) }

func (d *ram) call(op string, off int64) error {
	if d.hook != nil {
		return d.hook(op, off)
	}
	return nil
}

func (d *ram) ReadAt(p []byte, off int64) (int, error) {
	if err := d.call("read", off); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(p, d.data[off:]), nil
}

func (d *ram) WriteAt(p []byte, off int64) (int, error) {
	if err := d.call("write", off); err != nil {
		return 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.data[off:], p), nil
}

func (d *ram) Sync() error {
	if err := d.call("sync", 0); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncs++
	return nil
}

func (d *ram) Trim(off, n int64) error {
	d.mu.Lock()
	d.trims++
	d.mu.Unlock()
	return d.WriteZeroes(off, n)
}

func (d *ram) WriteZeroes(off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	return nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t testing.TB, why string, err, target error) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: error %v, want %v", why, err, target)
	}
}

// serve serves what configure exports on a Unix socket, and returns its path.
func serve(t testing.TB, cfg ServerConfig, exports ...ExportConfig) (*Server, []*Export, string) {
	t.Helper()
	srv := NewServer(cfg)
	var exps []*Export
	for _, ec := range exports {
		e, err := srv.Export(ec)
		must(t, err)
		exps = append(exps, e)
	}
	path := filepath.Join(socket.Dir(t), "nbd")
	ln, err := net.Listen("unix", path)
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := srv.Serve(ctx, ln); err != ErrServerClosed {
			t.Errorf("serve: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return srv, exps, path
}

func dial(t testing.TB, path string, cfg ClientConfig) *Client {
	t.Helper()
	c, err := Dial(context.Background(), "unix", path, cfg)
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}
