//go:build unix

package nbd_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
	"github.com/gocolo/lockstep/internal/socket"
	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// fioJobs are loads of guests, in the options of fio.
var fioJobs = []struct {
	name string
	args []string
	read bool
}{
	{"randwrite", []string{"--rw=randwrite", "--bs=4k"}, false},
	{"randread", []string{"--rw=randread", "--bs=4k"}, true},
	{"write64k", []string{"--rw=write", "--bs=64k"}, false},
	{"fsync8", []string{"--rw=randwrite", "--bs=4k", "--fsync=8"}, false},
	{"rewrite", []string{"--rw=write", "--bs=4k", "--size=4k"}, false}, // one block again and again
}

// fioRun has the figures of one run of fio.
type fioRun struct {
	IOPS     float64 `json:"iops"`
	Requests int64   `json:"total_ios"`
	Clat     struct {
		Percentile map[string]float64 `json:"percentile"` // ns
	} `json:"clat_ns"`
	flush float64 // the 99th percentile of the time of a flush, in ns; 0: there was none
}

// fio runs a job for a second against the disk that is served at a socket.
func fio(b *testing.B, socket string, args []string) (run fioRun) {
	b.Helper()
	args = append([]string{"--name=j", "--ioengine=nbd", "--uri=nbd+unix:///?socket=" + socket, "--iodepth=16",
		"--time_based", "--runtime=1", "--output-format=json"}, args...)
	out, err := exec.Command(require.Program(b, require.NBD, "fio"), args...).Output()
	if err != nil {
		b.Fatalf("fio %s: %v", args, err)
	}
	out = out[max(bytes.IndexByte(out, '{'), 0):] // after what it has to say else
	var all struct {
		Jobs []struct {
			Read, Write fioRun
			Sync        struct {
				Lat struct {
					Percentile map[string]float64 `json:"percentile"`
				} `json:"lat_ns"`
			}
		}
	}
	must(b, json.Unmarshal(out, &all))
	if run = all.Jobs[0].Write; all.Jobs[0].Read.IOPS > 0 {
		run = all.Jobs[0].Read
	}
	run.flush = all.Jobs[0].Sync.Lat.Percentile["99.000000"]
	return run
}

// compareFio runs a job against ours and theirs by turns, and reports the ratios
// of the best of each: what else runs on the machine only takes away; and the median of
// the ratios of neighbours. The processor time is what this process took in the run that
// took least, per request.
func compareFio(b *testing.B, args []string, ours, theirs string) {
	b.Helper()
	var runs [2][]fioCost
	for b.Loop() {
		for i, socket := range []string{ours, theirs} {
			before := spent(b)
			r := fio(b, socket, args)
			runs[i] = append(runs[i], spent(b).since(before, r))
		}
	}
	for i, name := range []string{"ours-", "theirs-"} {
		least := func(of func(fioCost) float64) float64 {
			return of(slices.MinFunc(runs[i], func(x, y fioCost) int { return cmp.Compare(of(x), of(y)) }))
		}
		b.ReportMetric(least(func(c fioCost) float64 { return c.process }), name+"cpu-µs") // none of another process's
		b.ReportMetric(least(func(c fioCost) float64 { return c.fio }), name+"fio-cpu-µs")
		b.ReportMetric(least(func(c fioCost) float64 { return c.calls }), name+"calls")
		b.ReportMetric(-least(func(c fioCost) float64 { return -c.IOPS }), name+"IOPS")
		b.ReportMetric(least(func(c fioCost) float64 { return c.p99() })/1e3, name+"p99-µs")
	}
	most := func(i int) float64 {
		return slices.MaxFunc(runs[i], func(x, y fioCost) int { return cmp.Compare(x.IOPS, y.IOPS) }).IOPS
	}
	p99 := func(i int) float64 {
		return slices.MinFunc(runs[i], func(x, y fioCost) int { return cmp.Compare(x.p99(), y.p99()) }).p99()
	}
	b.ReportMetric(most(0)/most(1), "ratio")
	b.ReportMetric(p99(0)/p99(1), "p99-ratio")
	pairs := func(of func(fioCost) float64) float64 { // the median of the ratios of those that ran one after the other
		var all []float64
		for i := range runs[0] {
			all = append(all, of(runs[0][i])/of(runs[1][i]))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	b.ReportMetric(pairs(func(c fioCost) float64 { return c.IOPS }), "median-ratio")
	b.ReportMetric(pairs(fioCost.p99), "median-p99-ratio")
	if runs[0][0].flush > 0 {
		b.ReportMetric(pairs(func(c fioCost) float64 { return c.flush }), "median-flush-p99-ratio")
	}
}

// p99 returns the time that one in a hundred requests took, or more, in nanoseconds.
func (r fioRun) p99() float64 { return r.Clat.Percentile["99.000000"] }

// fioCost is a run, and what each of its requests took.
type fioCost struct {
	fioRun
	process, fio float64 // processor time, in microseconds: this process's, and fio's
	calls        float64 // system calls of this process that read or write a file or a connection
}

// spent returns the processor time used so far, by this process and by those that it has waited
// for.
func spent(b *testing.B) fioCost {
	var self, others syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &self))
	must(b, syscall.Getrusage(syscall.RUSAGE_CHILDREN, &others))
	time := func(u syscall.Rusage) float64 { return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e3 }
	return fioCost{process: time(self), fio: time(others), calls: ioCalls(b, "syscr") + ioCalls(b, "syscw")}
}

// since returns the processor time of each request of a run, before which so much had been used.
func (c fioCost) since(before fioCost, r fioRun) fioCost {
	n := max(float64(r.Requests), 1)
	return fioCost{r, (c.process - before.process) / n, (c.fio - before.fio) / n, (c.calls - before.calls) / n}
}

// ioCalls is how many system calls this process has made that read or write a file or a
// connection: syscr or syscw of /proc/self/io.
func ioCalls(b *testing.B, name string) (n float64) {
	b.Helper()
	all, err := os.ReadFile("/proc/self/io")
	must(b, err)
	_, rest, _ := bytes.Cut(all, []byte(name+": "))
	_, err = fmt.Sscan(string(rest), &n)
	must(b, err)
	return n
}

// fioServe serves a disk at a socket.
func fioServe(b *testing.B, d nbd.Disk) string {
	b.Helper()
	srv := nbd.NewServer(nbd.ServerConfig{})
	_, err := srv.Export(nbd.ExportConfig{Disk: d})
	must(b, err)
	return serveAt(b, srv, filepath.Join(socket.Dir(b), "s"))
}

// BenchmarkFioPromoted is fio on a disk of a guest that has taken over, beside
// qemu-nbd with the same file:
//
//	go test -run - -bench FioPromoted -benchtime 5x ./replication/nbd
func BenchmarkFioPromoted(b *testing.B) {
	ctx := context.Background()
	d, path := benchFile(b, "disk")
	s, err := replication.NewSecondary(d, replication.SecondaryConfig{})
	must(b, err)
	must(b, s.Start(ctx))
	must(b, s.Stop(ctx, true))
	fioBesideQEMU(b, s, path)
}

// BenchmarkFioFile is the same on a file that is served as it is.
func BenchmarkFioFile(b *testing.B) {
	d, path := benchFile(b, "disk")
	fioBesideQEMU(b, d, path)
}

// fioBesideQEMU compares a disk that is served with the file of that name, served by qemu-nbd.
func fioBesideQEMU(b *testing.B, d nbd.Disk, path string) {
	b.Helper()
	theirs := filepath.Join(socket.Dir(b), "qemu")
	background(b, require.QEMU, theirs, "qemu-nbd", "-t", "-e", "4", "--cache=writeback", "-k", theirs, "--image-opts", unlocked(path))
	ours := fioServe(b, d)
	for _, j := range fioJobs {
		b.Run(j.name, func(b *testing.B) { compareFio(b, j.args, ours, theirs) })
	}
}

// BenchmarkFioPrimary is fio on a protected primary with ten checkpoints a second,
// whose secondary's disk is in memory where there is /dev/shm, beside the bare
// remote disk: what the guest writes goes to the same kind of server, one hop
// further, with a disk like the primary's own, and is answered when that has
// answered. fio reaches both by the same server. Both hosts share this one's
// processors, so that what a primary's secondary does is taken from the guest, which
// it is not where they are two.
func BenchmarkFioPrimary(b *testing.B) {
	fioPrimary(b, overASocket(b))
}

// overASocket returns a function that serves a disk at a Unix socket, and dials it.
func overASocket(b *testing.B) func(nbd.Disk) *nbd.Client {
	return func(d nbd.Disk) *nbd.Client {
		c, err := nbd.Dial(context.Background(), "unix", fioServe(b, d), nbd.ClientConfig{})
		must(b, err)
		return c
	}
}

// fioPrimary compares the disk of a protected primary with a bare remote one. Both are one
// hop away from what reach serves.
func fioPrimary(b *testing.B, reach func(nbd.Disk) *nbd.Client) {
	disks := newFioDisks(b, reach)
	ours, theirs := fioServe(b, disks.primary), fioServe(b, disks.bare)
	for _, j := range fioJobs {
		if !j.read {
			b.Run(j.name, func(b *testing.B) { compareFio(b, j.args, ours, theirs) })
		}
	}
}

// BenchmarkFioPrimaryToAFile is fio on the same protected primary, beside qemu-nbd with the file that
// is the primary's own disk. A write to the file is answered by one process; one to the primary is
// copied to a second disk, by a second process in the place of which this one stands.
func BenchmarkFioPrimaryToAFile(b *testing.B) {
	disks := newFioDisks(b, overASocket(b))
	fioBesideQEMU(b, disks.primary, disks.local)
}

// fioDisks are a protected primary, the name of the file that is its disk, and a bare remote disk.
type fioDisks struct {
	primary nbd.Disk
	local   string
	bare    nbd.Disk
}

// newFioDisks makes disks, and commits ten checkpoints a second until the benchmark ends.
func newFioDisks(b *testing.B, reach func(nbd.Disk) *nbd.Client) fioDisks {
	ctx := context.Background()
	dir, err := os.MkdirTemp("/dev/shm", "lockstep")
	if err != nil {
		dir = b.TempDir()
	} else {
		b.Cleanup(func() { os.RemoveAll(dir) })
	}
	remote, err := replication.CreateFile(filepath.Join(dir, "secondary"), benchSize)
	must(b, err)
	b.Cleanup(func() { remote.Close() })
	client := func(d nbd.Disk) *nbd.Client {
		c := reach(d)
		b.Cleanup(func() { c.Close() })
		return c
	}
	local, path := benchFile(b, "local")
	bare, _ := benchFile(b, "bare")
	for _, d := range []*replication.File{remote, local, bare} { // pre-images are of data, not of holes
		must(b, fillDisk(d))
	}
	s, err := replication.NewSecondary(remote, replication.SecondaryConfig{})
	must(b, err)
	must(b, s.Start(ctx))
	p, err := replication.NewPrimary(local, replication.PrimaryConfig{InSync: true})
	must(b, err)
	must(b, p.Attach(client(s.Export())))
	must(b, p.Start(ctx))
	run, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { p.Run(run) })
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for epoch := uint64(1); ; epoch++ {
			select {
			case <-tick.C:
			case <-run.Done():
				return
			}
			err := p.Mark(ctx, epoch)
			if err == nil {
				err = s.Checkpoint(ctx, epoch)
			}
			if err == nil {
				err = p.Loaded(ctx, epoch)
			}
			if err != nil {
				b.Error(fmt.Errorf("checkpoint %d: %w", epoch, err))
				return
			}
		}
	})
	b.Cleanup(func() { cancel(); wg.Wait(); p.Stop(ctx, true) })
	return fioDisks{primary: p, local: path, bare: client(bare)}
}

// fillDisk writes all of a disk, with data that is the same on all.
func fillDisk(d *replication.File) error {
	p := bytes.Repeat([]byte("data"), 256<<10)
	for off := int64(0); off < d.Size(); off += int64(len(p)) {
		if _, err := d.WriteAt(p, off); err != nil {
			return err
		}
	}
	return d.Sync()
}
