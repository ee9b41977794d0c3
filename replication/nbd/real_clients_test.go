//go:build unix

package nbd_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// behind is what may be the secondary of a primary that real clients write to. None: a Secondary.
var behind = [][]string{
	nil,
	{"--filter=delay", "wdelay=1ms", "rdelay=1ms"},
	{"--filter=rate", "rate=400M"},
	{"--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error"},
	{"--filter=nozero"},
	{"--filter=noextents"},
	{"--filter=fua"},
	{"--filter=fua", "fuamode=emulate"},
	{"--filter=error", "error-pwrite=EIO", "error-pwrite-rate=3%"},
	nil,
}

// realClients is a protected disk that real clients write to, beside a plain file that gets the same.
type realClients struct {
	t          *testing.T
	rng        *rand.Rand
	size       int64
	dir        string
	plain, uri string
	said       []string
}

// What real clients have written by NBD to a protected disk is what they have written to a plain file, on both sides,
// and what they say of it is true.
func TestRealClientsWriteToAProtectedDiskWhatTheyWriteToAFile(t *testing.T) {
	for _, name := range []string{"qemu-img", "qemu-io"} {
		require.Program(t, require.QEMU, name)
	}
	for _, name := range []string{"nbdcopy", "nbdinfo", "nbdkit"} {
		require.Program(t, require.NBD, name)
	}
	for seed := range require.Many(uint64(1), uint64(len(behind)), uint64(8*len(behind))) {
		args := behind[seed%uint64(len(behind))]
		t.Run(fmt.Sprint(seed, args), func(t *testing.T) { realClientsRound(t, seed, args) })
	}
}

func realClientsRound(t *testing.T, seed uint64, args []string) {
	c := &realClients{t: t, rng: rand.New(rand.NewPCG(seed, 7)), size: 8 << 20, dir: t.TempDir()}
	if args == nil {
		c.size += c.rng.Int64N(8) * 512
	}
	defer func() {
		if t.Failed() {
			t.Log(strings.Join(c.said, "\n"))
		}
	}()
	c.plain = filepath.Join(c.dir, "plain")
	d, err := replication.CreateFile(c.plain, c.size)
	must(t, err)
	must(t, d.Close())
	local, err := replication.CreateFile(filepath.Join(c.dir, "local"), c.size)
	must(t, err)
	defer local.Close()
	p, err := replication.NewPrimary(local, replication.PrimaryConfig{Overwrite: true})
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var run sync.WaitGroup
	defer run.Wait()
	defer cancel()
	run.Go(func() { p.Run(ctx) })

	ours := filepath.Join(c.dir, "ours")
	attach := func(args []string) (checkpoint func(epoch uint64) error, disk func() []byte) {
		path := filepath.Join(socket.Dir(t), "s")
		checkpoint = func(uint64) error { return nil }
		if args == nil {
			far, err := replication.CreateFile(ours, c.size)
			must(t, err)
			t.Cleanup(func() { far.Close() })
			s, err := replication.NewSecondary(far, replication.SecondaryConfig{Blank: true})
			must(t, err)
			_, path, _ = export(t, nbd.ExportConfig{Disk: s.Export()})
			checkpoint = func(epoch uint64) error {
				if epoch == 0 {
					return s.Start(ctx)
				}
				return s.Checkpoint(ctx, epoch)
			}
			disk = func() []byte { return contents(t, far, int(c.size)) }
		} else {
			far := filepath.Join(c.dir, "far")
			must(t, os.WriteFile(far, make([]byte, c.size), 0o600))
			background(t, require.NBD, path, "nbdkit", append([]string{"-f", "-U", path, args[0], "file", far}, args[1:]...)...)
			disk = func() []byte { b, err := os.ReadFile(far); must(t, err); return b }
		}
		r, err := nbd.Dial(ctx, "unix", path, nbd.ClientConfig{})
		must(t, err)
		must(t, p.Attach(r))
		return checkpoint, disk
	}
	inStep := func(checkpoint func(uint64) error) error {
		if err := p.Synchronise(ctx, replication.SyncConfig{}); err != nil {
			return err
		}
		if err := p.Mark(ctx, 0); err != nil {
			return err
		}
		must(t, checkpoint(0))
		if err := p.Loaded(ctx, 0); err != nil {
			return err
		}
		return p.Start(ctx)
	}
	checkpoint, disk := attach(args)
	broken := inStep(checkpoint)
	_, _, c.uri = export(t, nbd.ExportConfig{Name: "d", Disk: p, MaxClients: 16})
	epoch := uint64(0)
	for range 8 {
		c.step()
		if t.Failed() {
			return
		}
		if broken == nil && c.rng.IntN(2) == 0 {
			epoch++
			if broken = p.Mark(ctx, epoch); broken == nil {
				must(t, checkpoint(epoch))
				broken = p.Loaded(ctx, epoch)
			}
		}
	}
	if broken == nil {
		broken = p.Mark(ctx, epoch+1)
	}
	if broken != nil {
		if len(args) == 0 || args[0] != "--filter=error" {
			t.Fatal(broken)
		}
		p.Stop(ctx, true)
		must(t, p.Detach())
		checkpoint, disk = attach(nil)
		must(t, inStep(checkpoint))
	}
	want, err := os.ReadFile(c.plain)
	must(t, err)
	if !bytes.Equal(contents(t, local, int(c.size)), want) {
		t.Error("the local disk is not what was written to a file")
	}
	if !bytes.Equal(disk(), want) {
		t.Error("the disk of the other side is not what was written to a file")
	}
	p.Stop(ctx, true)
	must(t, p.Detach())
}

// both has a program do the same to the file and to the disk.
func (c *realClients) both(what, name string, args func(target string) []string) {
	for _, target := range []string{c.plain, c.uri} {
		a := args(target)
		c.said = append(c.said, name+" "+strings.Join(a, " "))
		tool(c.t, what, name, a...)
	}
}

// source makes a file with some data and some holes.
func (c *realClients) source() string {
	name := filepath.Join(c.dir, "source")
	f, err := os.Create(name)
	must(c.t, err)
	defer f.Close()
	must(c.t, f.Truncate(c.size))
	for range 1 + c.rng.IntN(20) {
		n := (1 + c.rng.Int64N(200)) * 512
		_, err := f.WriteAt(bytes.Repeat([]byte{byte(c.rng.Uint32())}, int(n)), c.rng.Int64N((c.size-n)/512+1)*512)
		must(c.t, err)
	}
	return name
}

func (c *realClients) step() {
	switch c.rng.IntN(7) {
	case 0, 1:
		commands := c.commands()
		c.both(require.QEMU, "qemu-io", func(target string) []string {
			return append([]string{"-f", "raw", "-d", "unmap", "-t", "writeback"}, append(commands, target)...)
		})
	case 2:
		flags := [][]string{{"-n"}, {"-n", "-W", "-m", "16"}, {"-n", "-S", "0"}, {"-n", "-W", "-m", "16", "-t", "writethrough"}}[c.rng.IntN(4)]
		if c.rng.IntN(3) == 0 { // which promises that the target is zero
			c.both(require.QEMU, "qemu-io", func(target string) []string {
				return []string{"-f", "raw", "-c", fmt.Sprint("write -z 0 ", c.size), target}
			})
			flags = append(flags, "--target-is-zero")
		}
		source := c.source()
		c.both(require.QEMU, "qemu-img", func(target string) []string {
			return append(append([]string{"convert", "-f", "raw", "-O", "raw"}, flags...), source, target)
		})
	case 3:
		source := c.source()
		flags := [][]string{{}, {"--flush"}, {"--allocated"}, {"--request-size=65536", "--requests=16"}, {"--synchronous"}, {"--no-extents"}}[c.rng.IntN(6)]
		c.both(require.NBD, "nbdcopy", func(target string) []string { return append(flags[:len(flags):len(flags)], source, target) })
	case 4:
		off, k := c.rng.Int64N(1<<10)*4096, 1+c.rng.IntN(400)
		pattern, size := c.rng.IntN(256), []int{512, 4096, 12288}[c.rng.IntN(3)]
		k = min(k, int(c.size-off)/size) // or it begins anew in the middle of a request
		flush := c.rng.IntN(2) * 8
		c.both(require.QEMU, "qemu-img", func(target string) []string {
			a := []string{"bench", "-f", "raw", "-w", "-t", "writeback", "-d", "16", fmt.Sprintf("--pattern=%d", pattern),
				"-s", fmt.Sprint(size), "-o", fmt.Sprint(off), "-c", fmt.Sprint(k)}
			if flush > 0 {
				a = append(a, "-d", "8", fmt.Sprintf("--flush-interval=%d", flush))
			}
			return append(a, target)
		})
	case 5:
		tool(c.t, require.QEMU, "qemu-img", "compare", "-f", "raw", "-F", "raw", c.plain, c.uri)
		back := filepath.Join(c.dir, "back")
		tool(c.t, require.NBD, "nbdcopy", c.uri, back)
		c.same(back)
		os.Remove(back)
		tool(c.t, require.QEMU, "qemu-img", "convert", "-f", "raw", "-O", "raw", "-W", "-m", "16", c.uri, back)
		c.same(back)
		os.Remove(back)
	default:
		c.maps()
	}
}

func (c *realClients) same(name string) {
	got, err := os.ReadFile(name)
	must(c.t, err)
	want, err := os.ReadFile(c.plain)
	must(c.t, err)
	if !bytes.Equal(got, want) {
		c.t.Error("a client reads other data than it has written")
	}
}

// commands returns what qemu-io is to do.
func (c *realClients) commands() (all []string) {
	for range 1 + c.rng.IntN(60) {
		n := (1 + c.rng.Int64N(64)) * 512
		if c.rng.IntN(10) == 0 {
			n = (1 + c.rng.Int64N(c.size/1024)) * 512
		}
		off := c.rng.Int64N((c.size-n)/512+1) * 512
		how := []string{"write -P PATTERN OFF LEN", "write -f -P PATTERN OFF LEN", "write -z OFF LEN", "write -z -u OFF LEN",
			"write -z -f OFF LEN", "discard OFF LEN", "flush", "aio_write -P PATTERN OFF LEN"}[c.rng.IntN(8)]
		switch {
		case how == "flush":
			all = append(all, "-c", how)
			continue
		case strings.HasPrefix(how, "discard"): // of a file, whole blocks
			off, n = off&^4095, max(n&^4095, 4096)
			if off+n > c.size {
				continue
			}
		}
		all = append(all, "-c", strings.NewReplacer("OFF", fmt.Sprint(off), "LEN", fmt.Sprint(n), "PATTERN", fmt.Sprint(1+c.rng.IntN(255))).Replace(how))
		if strings.HasPrefix(how, "aio") {
			all = append(all, "-c", "aio_flush") // what overlaps has no order
		}
	}
	return all
}

// maps checks that what is said to be zero is zero, and that all of the disk is spoken of.
func (c *realClients) maps() {
	want, err := os.ReadFile(c.plain)
	must(c.t, err)
	at := int64(0)
	for _, r := range runs(c.t, tool(c.t, require.NBD, "nbdinfo", "--json", "--map", c.uri)) {
		if r.Offset != at || r.Type&nbd.StateZero != 0 && len(bytes.Trim(want[at:at+r.Length], "\x00")) > 0 {
			c.t.Errorf("at %d nbdinfo says %+v", at, r)
		}
		at += r.Length
	}
	if at != c.size {
		c.t.Errorf("nbdinfo speaks of %d bytes", at)
	}
	at = 0
	for _, r := range runs(c.t, tool(c.t, require.QEMU, "qemu-img", "map", "--output=json", "-f", "raw", c.uri)) {
		if r.Start != at || r.Zero && len(bytes.Trim(want[at:at+r.Length], "\x00")) > 0 {
			c.t.Errorf("at %d qemu-img says %+v", at, r)
		}
		at += r.Length
	}
	if at != c.size {
		c.t.Errorf("qemu-img speaks of %d bytes", at)
	}
}
