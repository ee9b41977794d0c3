//go:build unix

package nbd_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

const (
	sparseSize = 64 << 20
	sparseData = 3 << 20 // where the data is
	sparseLen  = 256 << 10
)

// sparseImage makes an image that is a hole but for some data, and returns its
// name.
func sparseImage(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "sparse")
	d, err := replication.CreateFile(name, sparseSize)
	must(t, err)
	p := make([]byte, sparseLen)
	for i := range p {
		p[i] = 0x5a
	}
	_, err = d.WriteAt(p, sparseData)
	must(t, err)
	must(t, d.Close())
	return name
}

// allocated returns how much storage there is behind a file.
func allocated(t *testing.T, name string) int64 {
	t.Helper()
	var st syscall.Stat_t
	must(t, syscall.Stat(name, &st))
	return st.Blocks * 512
}

// counted is a disk that counts what is read of it.
type counted struct {
	*replication.File
	read atomic.Int64
}

func (d *counted) ReadAt(p []byte, off int64) (int, error) {
	d.read.Add(int64(len(p)))
	return d.File.ReadAt(p, off)
}

// exportSparse serves a sparse image with a bitmap, and returns its name, the
// disk that is served, and its URI.
func exportSparse(t *testing.T) (name string, disk *counted, uri string) {
	t.Helper()
	name = sparseImage(t)
	d, err := replication.OpenFile(name)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	disk = &counted{File: d}
	bitmap := replication.NewBitmap(sparseSize)
	bitmap.Set(8<<20, 128<<10)
	_, _, uri = export(t, nbd.ExportConfig{
		Name: "d", Disk: disk, MaxClients: 16,
		Contexts: []nbd.Context{{Name: nbd.ContextDirty, Extents: bitmap.Extents}},
	})
	return name, disk, uri
}

// run is an entry of a map as nbdinfo and qemu-img print it.
type run struct {
	Offset, Length, Start int64
	Type                  uint32
	Zero, Data            bool
}

func runs(t *testing.T, out string) []run {
	t.Helper()
	var all []run
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return all
}

func TestNbdinfoSeesHolesAndTheBitmap(t *testing.T) {
	_, _, uri := exportSparse(t)
	if info := tool(t, require.NBD, "nbdinfo", uri); !strings.Contains(info, nbd.ContextAllocation) || !strings.Contains(info, nbd.ContextDirty) || !strings.Contains(info, "can_df: true") {
		t.Errorf("contexts: %s", info)
	}
	got := runs(t, tool(t, require.NBD, "nbdinfo", "--json", "--map", uri))
	if len(got) != 3 || got[0].Type != nbd.StateHole|nbd.StateZero || got[1].Offset != sparseData || got[1].Length != sparseLen || got[1].Type != 0 || got[2].Type != 3 {
		t.Errorf("allocation: %+v", got)
	}
	got = runs(t, tool(t, require.NBD, "nbdinfo", "--json", "--map="+nbd.ContextDirty, uri))
	if len(got) != 3 || got[1].Offset != 8<<20 || got[1].Length != 128<<10 || got[1].Type != nbd.StateDirty {
		t.Errorf("bitmap: %+v", got)
	}
}

func TestQEMUImgSeesHolesAndTheBitmap(t *testing.T) {
	_, _, uri := exportSparse(t)
	got := runs(t, tool(t, require.QEMU, "qemu-img", "map", "--output=json", "-f", "raw", uri))
	if len(got) != 3 || got[0].Data || !got[0].Zero || got[1].Start != sparseData || got[1].Length != sparseLen || !got[1].Data || got[2].Data {
		t.Errorf("allocation: %+v", got)
	}
	socket := uri[strings.Index(uri, "socket=")+len("socket="):]
	got = runs(t, tool(t, require.QEMU, "qemu-img", "map", "--output=json", "--image-opts",
		"driver=nbd,server.type=unix,server.path="+socket+",export=d,x-dirty-bitmap="+nbd.ContextDirty))
	if len(got) != 3 || got[1].Start != 8<<20 || got[1].Length != 128<<10 || got[1].Data { // QEMU shows dirty as not data
		t.Errorf("bitmap: %+v", got)
	}
}

// TestSparseCopiesStaySparse has real clients copy an export, and back to one.
func TestSparseCopiesStaySparse(t *testing.T) {
	for _, tc := range []struct {
		what, name string
		from, to   func(uri, file string) []string
	}{
		{require.NBD, "nbdcopy",
			func(uri, file string) []string { return []string{uri, file} },
			func(uri, file string) []string { return []string{file, uri} }},
		{require.QEMU, "qemu-img",
			func(uri, file string) []string { return []string{"convert", "-f", "raw", "-O", "raw", uri, file} },
			func(uri, file string) []string {
				return []string{"convert", "-n", "--target-is-zero", "-f", "raw", "-O", "raw", file, uri}
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			source, disk, uri := exportSparse(t)
			want, err := os.ReadFile(source)
			must(t, err)
			copied := filepath.Join(t.TempDir(), "copy")
			tool(t, tc.what, tc.name, tc.from(uri, copied)...)
			got, err := os.ReadFile(copied)
			must(t, err)
			if string(got) != string(want) {
				t.Error("the copy differs")
			}
			if n := allocated(t, copied); n > 2*sparseLen {
				t.Errorf("the copy takes %d bytes of storage, its data is %d", n, sparseLen)
			}
			if n := disk.read.Load(); n > 2*sparseLen { // also what is asked for beside the copy
				t.Errorf("%d bytes were read to copy %d", n, sparseLen)
			}
			target, err := replication.CreateFile(filepath.Join(t.TempDir(), "target"), sparseSize)
			must(t, err)
			defer target.Close()
			_, _, back := export(t, nbd.ExportConfig{Name: "t", Disk: target, MaxClients: 16})
			tool(t, tc.what, tc.name, tc.to(back, copied)...) // the source is locked
			if string(contents(t, target, sparseSize)) != string(want) {
				t.Error("the copy back differs")
			}
		})
	}
}

// TestHolesOfRealServers asks them for block status.
func TestHolesOfRealServers(t *testing.T) {
	for _, tc := range []struct {
		what string
		args func(socket, image string) []string
	}{
		{require.QEMU, func(socket, image string) []string {
			return []string{"qemu-nbd", "-t", "-f", "raw", "-k", socket, image}
		}},
		{require.NBD, func(socket, image string) []string {
			return []string{"nbdkit", "-f", "-U", socket, "file", image}
		}},
		{require.NBD, func(socket, image string) []string { // extents one by one
			return []string{"nbdkit", "-f", "-U", socket, "--filter=noextents", "file", image}
		}},
		{require.NBD, func(socket, image string) []string { // no structured replies
			return []string{"nbdkit", "-f", "-U", socket, "--no-sr", "file", image}
		}},
	} {
		image, socket := sparseImage(t), filepath.Join(socket.Dir(t), "s")
		args := tc.args(socket, image)
		what := strings.Join(args[:len(args)-1], " ")
		background(t, tc.what, socket, args[0], args[1:]...)
		c, err := nbd.Dial(context.Background(), "unix", socket, nbd.ClientConfig{})
		must(t, err)
		var zero, data int64
		must(t, replication.Extents(c, 0, sparseSize, func(n int64, flags uint32) bool {
			if flags&replication.ExtentZero != 0 {
				zero += n
			} else {
				data += n
			}
			return true
		}))
		blind := strings.Contains(what, "--filter=noextents") || strings.Contains(what, "--no-sr")
		if zero+data != sparseSize || blind != (zero == 0) || !blind && data != sparseLen {
			t.Errorf("%s: %d bytes of zeroes and %d of data", what, zero, data)
		}
		p := contents(t, c, sparseSize) // QEMU sends the holes in it as chunks of their own
		for i, b := range p {
			if in := i >= sparseData && i < sparseData+sparseLen; in != (b == 0x5a) {
				t.Fatalf("%s: byte %d is %#x", what, i, b)
			}
		}
		must(t, c.Close())
	}
}
