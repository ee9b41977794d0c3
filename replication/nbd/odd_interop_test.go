package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// oddSize is the size of the disks of these tests. oddData is what nbdkit's data plugin makes
// one of: data at odd places of odd lengths, with holes around it whose ends are odd too.
const (
	oddSize = 8 << 20
	oddData = "@1000001 0x55*1000 @3145727 0x66*3 @4194304 0x77*65536 @8388600 0x88*8"
)

// nbdkit starts nbdkit with the filters and the plugin of args, and returns a connection to it.
func nbdkit(t *testing.T, args ...string) *nbd.Client {
	t.Helper()
	socket := filepath.Join(socket.Dir(t), "s")
	background(t, require.NBD, socket, "nbdkit", append([]string{"-f", "-U", socket}, args...)...)
	c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{})
	must(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// Holes that begin and end at odd places are told as they are, whatever cuts the disk.
func TestHolesAtOddPlacesAreZeroesAndTheRestIsData(t *testing.T) {
	for _, filters := range []string{"", "--filter=offset offset=511 range=8000000", "--filter=truncate round-up=65536", "--filter=noextents", "--filter=cow"} {
		filter, args, _ := strings.Cut(filters, " ")
		all := []string{"data", "data=" + oddData, "size=8388608"}
		if filter != "" {
			all = append([]string{filter}, append(all, strings.Fields(args)...)...)
		}
		c := nbdkit(t, all...)
		p := contents(t, c, int(c.Size()))
		end, zero := int64(0), int64(0)
		must(t, replication.Extents(c, 0, c.Size(), func(n int64, flags uint32) bool {
			if flags&replication.ExtentZero != 0 {
				zero += n
				if len(bytes.Trim(p[end:end+n], "\x00")) > 0 {
					t.Errorf("%q: data in %d bytes of zeroes at %d", filters, n, end)
				}
			}
			end += n
			return true
		}))
		if end != c.Size() || (filter == "--filter=noextents") != (zero == 0) {
			t.Errorf("%q: %d of %d bytes are told of, %d are zeroes", filters, end, c.Size(), zero)
		}
	}
}

// What a server says that it cannot do is known before a guest has its disk: read-only, no flush,
// a size that is none of a disk, and blocks that are larger than sectors.
func TestAServerThatCannotBeAGuestsDiskIsRefused(t *testing.T) {
	fits := filepath.Join(t.TempDir(), "fits")
	local, err := replication.CreateFile(fits, oddSize)
	must(t, err)
	defer local.Close()
	for _, x := range []struct {
		args string
		disk error // as a guest's disk; nil: it is taken
		far  error // as the disk of a primary's secondary
	}{
		{"-r memory size=8388608", nbd.ErrReadOnly, nbd.ErrReadOnly},
		{"eval get_size=@8388608 pread=@ pwrite=@", errors.ErrUnsupported, errors.ErrUnsupported},
		{"memory size=8388609", replication.ErrSize, replication.ErrSize},
		{"null size=0", replication.ErrSize, replication.ErrSize},
		{"--filter=blocksize-policy memory size=8388608 blocksize-minimum=4096", replication.ErrSize, nil},
		{"--filter=blocksize-policy memory size=8388608 blocksize-minimum=512", nil, nil},
		{"eval get_size=@8388608 pread=@ pwrite=@ can_flush=@ flush=@ can_fua=@none", nil, nil}, // and no FUA
		{"--filter=multi-conn memory size=8388608 multi-conn-mode=disable", nil, nil},
	} {
		t.Run(strings.ReplaceAll(x.args, "/", "_"), func(t *testing.T) {
			args := strings.Fields(x.args)
			for i, a := range args { // a script that says so
				if name, text, ok := strings.Cut(a, "=@"); ok {
					args[i] = name + "=cat >/dev/null </dev/null; echo " + text
				}
			}
			c := nbdkit(t, args...)
			if i := c.Info(); strings.HasPrefix(x.args, "eval") && i.FUA {
				t.Errorf("the server knows FUA: %+v", i)
			}
			is := func(what string, err, want error) {
				t.Helper()
				if !errors.Is(err, want) || (err == nil) != (want == nil) {
					t.Errorf("%s: %v, want %v", what, err, want)
				}
			}
			_, err := replication.NewPrimary(c, replication.PrimaryConfig{})
			is("the disk of a primary", err, x.disk)
			_, err = replication.NewSecondary(c, replication.SecondaryConfig{})
			is("the disk of a secondary", err, x.disk)
			p, err := replication.NewPrimary(local, replication.PrimaryConfig{InSync: true})
			must(t, err)
			is("the secondary of a primary", p.Attach(c), x.far)
			must(t, p.Detach())
		})
	}
}

// What other servers lack, or want, is nothing that the two disks differ by: the first copy
// over odd content, what the guest writes meanwhile and after it, by sectors, and what it
// zeroes.
func TestEveryKindOfServerBecomesACopy(t *testing.T) {
	data := []string{"--filter=cow", "data", "data=" + oddData, "size=8388608"}
	for _, args := range [][]string{
		{"--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error"},
		{"--filter=blocksize-policy", "blocksize-minimum=65536", "blocksize-maximum=131072", "blocksize-error-policy=error"},
		{"--filter=nozero"},
		{"--filter=blocksize", "minblock=4096", "maxdata=65536", "maxlen=131072"},
		{"--filter=rate", "rate=400M", "connection-rate=300M"},
		{"--filter=delay", "wdelay=1ms", "delay-close=20ms"},
		{"--filter=noextents"},
		{"--filter=fua", "fuamode=discard"},
		{"--filter=fua", "fuamode=force"},
		{"--no-sr"},
	} {
		name := strings.Join(args, " ")
		t.Run(name, func(t *testing.T) {
			filter := args[:1]
			c := nbdkit(t, append(append(filter[:1:1], data...), args[1:]...)...)
			d, err := replication.CreateFile(filepath.Join(t.TempDir(), "local"), oddSize)
			must(t, err)
			t.Cleanup(func() { d.Close() })
			_, err = d.WriteAt([]byte(name), 5<<20-3)
			must(t, err)
			p, err := replication.NewPrimary(d, replication.PrimaryConfig{Overwrite: true})
			must(t, err)
			defer p.Stop(context.Background(), true)
			must(t, p.Attach(c))
			ctx, cancel := context.WithCancel(t.Context())
			var run, guest sync.WaitGroup
			defer run.Wait()
			defer cancel()
			defer guest.Wait()
			run.Go(func() { p.Run(ctx) })
			for g := range uint64(3) {
				guest.Go(func() {
					rng := rand.New(rand.NewPCG(g, 12))
					b := bytes.Repeat([]byte{byte(g) + 1}, 8<<10)
					for range 100 {
						off, n := rng.Int64N(oddSize/512-16)*512, (1+rng.Int64N(16))*512
						err := error(nil)
						switch rng.IntN(4) {
						case 0:
							err = p.WriteZeroes(off, n)
						case 1:
							err = p.WriteFUA(b[:n], off)
						default:
							_, err = p.WriteAt(b[:n], off)
						}
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			must(t, p.Synchronise(ctx, replication.SyncConfig{}))
			guest.Wait()
			must(t, p.Start(ctx))
			must(t, p.Mark(ctx, 1))
			if !bytes.Equal(contents(t, c, oddSize), contents(t, d, oddSize)) {
				t.Errorf("%s: the disks differ", name)
			}
		})
	}
}
