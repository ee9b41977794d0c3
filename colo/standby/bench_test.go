package standby_test

import (
	"bufio"
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/internal/socket"
)

const benchCheckpoints = 30

// BenchmarkCheckpointOfQEMU reports how long a QEMU primary's checkpoints of
// some numbers of pages take, from vmstate-send received to vmstate-loaded sent,
// in milliseconds (medians): here, here without prompt acknowledgement, in a
// QEMU secondary, and in a sink that keeps nothing, which is the bound: the time
// that QEMU takes to send. It needs KVM.
func BenchmarkCheckpointOfQEMU(b *testing.B) {
	for _, pages := range []uint32{10, 1000, 10000} {
		b.Run(strconv.Itoa(int(pages)), func(b *testing.B) {
			qemutest.KVM(b)
			for b.Loop() {
				qemu := besideQEMU(b, pages)
				nagle := benchStandby(b, pages, true)
				quick := benchStandby(b, pages, false)
				sink := benchSink(b, pages)
				b.ReportMetric(ms(quick.all), "ms")
				b.ReportMetric(ms(nagle.all), "ms-delayed-acks")
				b.ReportMetric(ms(qemu.all), "ms-qemu")
				b.ReportMetric(float64(quick.all)/float64(qemu.all), "of-qemu")
				b.ReportMetric(ms(sink.all), "ms-sink")
				b.ReportMetric(float64(quick.all)/float64(sink.all), "of-sink")
				b.ReportMetric(ms(quick.end), "ms-end")
				b.ReportMetric(ms(qemu.end), "ms-end-qemu")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// taken is how long a checkpoint took: all of it, and what came after its pages.
type taken struct{ all, end time.Duration }

func median(list []taken) (m taken) {
	list = list[1:] // the first one warms up
	slices.SortFunc(list, func(a, b taken) int { return cmp.Compare(a.end, b.end) })
	m.end = list[len(list)/2].end
	slices.SortFunc(list, func(a, b taken) int { return cmp.Compare(a.all, b.all) })
	m.all = list[len(list)/2].all
	return m
}

// dirtier starts a guest that dirties pages all the time, and is stopped so that
// the initial migration ends.
func dirtier(b *testing.B, pages uint32) *qemutest.VM {
	dir := qemutest.Dir(b)
	v := qemutest.Start(b, dir, qemutest.FirmwareArgs(b, dir, "pc", 64, qemutest.Firmware(pages, 1))...)
	qemutest.AwaitSerial(b, dir, 1)
	v.Must("stop", nil)
	return v
}

func benchStandby(b *testing.B, pages uint32, nagle bool) taken {
	l, uri := qemutest.Listen(b)
	p := dirtier(b, pages)
	p.Protect(uri, 100*time.Millisecond)
	var began, sized time.Time
	var times []taken
	o := options{nagle: nagle}
	o.cfg.Trace = func(dir string, m colo.Message, _ uint64) {
		switch {
		case dir == "<" && m == colo.VMStateSend:
			began = time.Now()
		case dir == ">" && m == colo.VMStateLoaded:
			times = append(times, taken{time.Since(began), time.Since(sized)})
		case dir == "<" && m == colo.VMStateSize:
			sized = time.Now()
		}
	}
	x := accept(b, l, o)
	x.await(benchCheckpoints)
	p.Kill()
	x.wait()
	if min := uint64(pages); x.guest.Pages() < min {
		b.Logf("a checkpoint of %d pages", x.guest.Pages())
	}
	return median(times)
}

// besideQEMU takes the times from the trace of a QEMU secondary.
func besideQEMU(b *testing.B, pages uint32) taken {
	dir := qemutest.Dir(b)
	log := filepath.Join(dir, "trace")
	uri := "tcp:" + socket.FreeTCP(b, 1)[0]
	qemutest.Start(b, dir, append(qemutest.FirmwareArgs(b, dir, "pc", 64, qemutest.Firmware(pages, 1)),
		"-trace", "colo_*_message", "-D", log, "-msg", "timestamp=on", "-incoming", uri)...)
	p := dirtier(b, pages)
	p.Protect(uri, 100*time.Millisecond)
	var times []taken
	for end := time.Now().Add(60 * time.Second); len(times) < benchCheckpoints; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			text, _ := os.ReadFile(log)
			b.Fatalf("%d checkpoints; the trace is %q", len(times), text[:min(len(text), 500)])
		}
		times = traced(b, log)
	}
	return median(times)
}

func traced(b *testing.B, log string) (times []taken) {
	f, err := os.Open(log)
	if err != nil {
		return nil
	}
	defer f.Close()
	var began, sized float64
	for s := bufio.NewScanner(f); s.Scan(); {
		var pid int
		var at float64
		if _, err := fmt.Sscanf(s.Text(), "%d@%f:", &pid, &at); err != nil {
			continue
		}
		switch line := s.Text(); {
		case strings.Contains(line, "receive") && strings.Contains(line, "vmstate-send"):
			began = at
		case strings.Contains(line, "receive") && strings.Contains(line, "vmstate-size"):
			sized = at
		case strings.Contains(line, "send_message") && strings.Contains(line, "vmstate-loaded"):
			times = append(times, taken{time.Duration((at - began) * 1e9), time.Duration((at - sized) * 1e9)})
		}
	}
	return times
}
