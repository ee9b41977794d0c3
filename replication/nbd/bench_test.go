package nbd_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

const (
	benchSize  = 64 << 20
	benchDepth = 16
	benchBytes = 32 << 20 // of one contender in one round
)

// contender is one way to do the same work; its throughput is compared with
// that of the others in the same run, for machines differ, and from one
// minute to the next.
type contender struct {
	name  string
	do    func(p []byte, off int64) error
	drain func() error // ends a round; may be nil
	bytes int64
	time  time.Duration
	same  bool // all requests are for one place
}

// round has depth goroutines do requests of n bytes at random places.
func (c *contender) round(b *testing.B, n int) {
	b.Helper()
	total := min(benchBytes, n*4096)
	var wg sync.WaitGroup
	begin := time.Now()
	for g := range benchDepth {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			p := make([]byte, n)
			for range total / n / benchDepth {
				off := rng.Int64N(benchSize/int64(n)) * int64(n)
				if c.same {
					off = 0
				}
				if err := c.do(p, off); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if c.drain != nil {
		if err := c.drain(); err != nil {
			b.Error(err)
		}
	}
	c.time += time.Since(begin)
	c.bytes += int64(total)
}

// compare reports the throughput of each, and the ratio of the first to the
// second.
func compare(b *testing.B, n int, cs ...*contender) {
	b.Helper()
	for _, c := range cs {
		c.round(b, n) // so that nobody is the first to touch the files
		c.bytes, c.time = 0, 0
	}
	for b.Loop() {
		for _, c := range cs {
			c.round(b, n)
		}
	}
	rate := func(c *contender) float64 { return float64(c.bytes) / c.time.Seconds() / 1e6 }
	for _, c := range cs {
		b.ReportMetric(rate(c), c.name+"-MB/s")
	}
	b.ReportMetric(rate(cs[0])/rate(cs[1]), "ratio")
}

func benchFile(b *testing.B, name string) (*replication.File, string) {
	b.Helper()
	path := filepath.Join(b.TempDir(), name)
	must(b, os.WriteFile(path, make([]byte, benchSize), 0o600))
	d, err := replication.OpenFile(path)
	must(b, err)
	b.Cleanup(func() { d.Close() })
	return d, path
}

// qemuNBD serves the file of that name over TCP, and returns a connection to
// it.
func qemuNBD(b *testing.B, path string) *nbd.Client {
	b.Helper()
	addr := socket.FreeTCP(b, 1)[0]
	host, port, err := net.SplitHostPort(addr)
	must(b, err)
	background(b, require.QEMU, addr, "qemu-nbd", "-t", "-e", "4", "--cache=writeback", "-b", host, "-p", port, "--image-opts", unlocked(path))
	return connect(b, addr)
}

// unlocked is how a QEMU is told of a raw image that somebody else has open too.
func unlocked(path string) string {
	return "driver=raw,file.driver=file,file.locking=off,file.filename=" + path
}

// ours serves a disk over TCP with this package, and returns a connection to
// it.
func ours(b *testing.B, d nbd.Disk) *nbd.Client {
	b.Helper()
	srv := nbd.NewServer(nbd.ServerConfig{})
	_, err := srv.Export(nbd.ExportConfig{Disk: d})
	must(b, err)
	return connect(b, serveAt(b, srv, "127.0.0.1:0"))
}

func connect(b *testing.B, addr string) *nbd.Client {
	b.Helper()
	c, err := nbd.Dial(context.Background(), "tcp", addr, nbd.ClientConfig{})
	must(b, err)
	b.Cleanup(func() { c.Close() })
	return c
}

func writer(w interface {
	WriteAt([]byte, int64) (int, error)
}) func([]byte, int64) error {
	return func(p []byte, off int64) error { _, err := w.WriteAt(p, off); return err }
}

func reader(r interface {
	ReadAt([]byte, int64) (int, error)
}) func([]byte, int64) error {
	return func(p []byte, off int64) error { _, err := r.ReadAt(p, off); return err }
}

// BenchmarkServer compares this server with qemu-nbd, on the same file, with
// the same client.
func BenchmarkServer(b *testing.B) {
	for _, n := range []int{4 << 10, 64 << 10} {
		for _, op := range []string{"read", "write"} {
			b.Run(fmt.Sprintf("%s/%dKiB", op, n>>10), func(b *testing.B) {
				d, path := benchFile(b, "disk")
				ours, theirs := ours(b, d), qemuNBD(b, path)
				how := func(c *nbd.Client) func([]byte, int64) error {
					if op == "read" {
						return reader(c)
					}
					return writer(c)
				}
				compare(b, n, &contender{name: "ours", do: how(ours)}, &contender{name: "qemu-nbd", do: how(theirs)})
			})
		}
	}
}

// BenchmarkPrimary compares writes through a primary, to the local file and to
// a secondary on the same host, with writes to qemu-nbd alone, and with the
// file alone.
func BenchmarkPrimary(b *testing.B) {
	for _, n := range []int{4 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) { comparePrimary(b, n, false) })
	}
}

// BenchmarkRewrite compares writes of one and the same block: to this server
// and to qemu-nbd with the same file, through a secondary that was promoted,
// and through a primary.
func BenchmarkRewrite(b *testing.B) {
	const n = 4 << 10
	b.Run("server", func(b *testing.B) {
		d, path := benchFile(b, "disk")
		compare(b, n, &contender{name: "ours", do: writer(ours(b, d)), same: true}, &contender{name: "qemu-nbd", do: writer(qemuNBD(b, path)), same: true})
	})
	b.Run("promoted", func(b *testing.B) {
		ctx := context.Background()
		d, path := benchFile(b, "disk")
		s, err := replication.NewSecondary(d, replication.SecondaryConfig{})
		must(b, err)
		must(b, s.Start(ctx))
		must(b, s.Stop(ctx, true))
		compare(b, n, &contender{name: "ours", do: writer(ours(b, s)), same: true}, &contender{name: "qemu-nbd", do: writer(qemuNBD(b, path)), same: true})
	})
	b.Run("secondary", func(b *testing.B) {
		d, path := benchFile(b, "disk")
		s, err := replication.NewSecondary(d, replication.SecondaryConfig{})
		must(b, err)
		must(b, s.Start(context.Background()))
		compare(b, n, &contender{name: "ours", do: writer(ours(b, s.Export())), same: true}, &contender{name: "qemu-nbd", do: writer(qemuNBD(b, path)), same: true})
	})
	b.Run("primary", func(b *testing.B) { comparePrimary(b, n, true) })
}

func comparePrimary(b *testing.B, n int, same bool) {
	ctx := context.Background()
	local, _ := benchFile(b, "local")
	remote, _ := benchFile(b, "remote")
	plain, _ := benchFile(b, "plain")
	_, path := benchFile(b, "bare")
	bare := qemuNBD(b, path)
	s, err := replication.NewSecondary(remote, replication.SecondaryConfig{})
	must(b, err)
	must(b, s.Start(ctx))
	p, err := replication.NewPrimary(local, replication.PrimaryConfig{InSync: true})
	must(b, err)
	must(b, p.Attach(ours(b, s.Export())))
	must(b, p.Start(ctx))
	run, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(run) })
	b.Cleanup(func() { cancel(); wg.Wait(); p.Stop(ctx, true) })
	// A round ends when all of it is answered by the secondary. That
	// it is stable would be the business of the disks.
	epoch := uint64(0)
	drain := func() error {
		epoch++
		if err := p.Mark(ctx, epoch); err != nil {
			return err
		}
		if err := s.Checkpoint(ctx, epoch); err != nil {
			return err
		}
		return p.Loaded(ctx, epoch)
	}
	compare(b, n, &contender{name: "replicated", do: writer(p), drain: drain, same: same},
		&contender{name: "bare", do: writer(bare), drain: bare.Sync, same: same}, &contender{name: "file", do: writer(plain), drain: plain.Sync, same: same})
}

// BenchmarkThrough compares writes through, as a Forwarder begins them, to
// nbdkit without FUA, for which flushes stand in, with those to nbdkit with
// it; and the latter with writes that are not through, which bound them.
func BenchmarkThrough(b *testing.B) {
	dial := func(mode ...string) *nbd.Client {
		socket := filepath.Join(socket.Dir(b), "s")
		background(b, require.NBD, socket, "nbdkit", append([]string{"-f", "-U", socket, "--filter=fua", "memory", "64M"}, mode...)...)
		c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{})
		must(b, err)
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			for c.Progress(ctx) == nil {
			}
		})
		b.Cleanup(func() { cancel(); wg.Wait(); c.Close() })
		return c
	}
	start := func(c *nbd.Client, fua bool) func([]byte, int64) error {
		return func(p []byte, off int64) error {
			done := make(chan error, 1)
			c.StartWrite(p, off, fua, func(err error) { done <- err })
			return <-done
		}
	}
	none, native := dial(), dial("fuamode=native")
	compare(b, 4<<10, &contender{name: "flushes", do: start(none, true)}, &contender{name: "FUA", do: start(native, true)},
		&contender{name: "plain", do: start(native, false)})
}
