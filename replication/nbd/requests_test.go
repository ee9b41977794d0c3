package nbd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestClientAndServerAgreeOnEveryCommand(t *testing.T) {
	disk := newRAM(1<<20 + 512)
	_, _, path := serve(t, ServerConfig{MaxRequest: 64 << 10}, ExportConfig{Name: "d", Generation: 3, Disk: disk, Description: "a disk"})
	c := dial(t, path, ClientConfig{Export: "d@3"})
	if i := c.Info(); i.Size != disk.Size() || i.MaxBlock != 64<<10 || i.MinBlock != 1 || !i.Flush || !i.FUA || !i.Trim || !i.WriteZeroes || i.ReadOnly {
		t.Errorf("info %+v", i)
	}
	p := make([]byte, 300_000) // more than a request may have
	rand.Read(p)
	n, err := c.WriteAt(p, 1001)
	if n != len(p) {
		t.Errorf("wrote %d: %v", n, err)
	}
	q := make([]byte, len(p))
	_, err = c.ReadAt(q, 1001)
	must(t, err)
	if !bytes.Equal(p, q) {
		t.Error("what was read is not what was written")
	}
	must(t, c.WriteZeroes(2000, 100_000))
	must(t, c.Trim(200_000, 512))
	_, err = c.ReadAt(q, 1001)
	must(t, err)
	clear(p[999:][:100_000])
	clear(p[198_999:][:512])
	if !bytes.Equal(p, q) {
		t.Error("zeroes are not where they should be")
	}
	before := disk.syncs
	must(t, c.Sync())
	must(t, c.WriteFUA(p[:100], 0))
	if disk.syncs != before+2 || disk.trims != 1 {
		t.Errorf("%d syncs, %d trims", disk.syncs-before, disk.trims)
	}
	_, err = c.ReadAt(q, disk.Size()-1)
	wantErr(t, "read beyond the end", err, ErrRange)
	_, err = c.WriteAt(q, -1)
	wantErr(t, "write before the beginning", err, ErrRange)
	must(t, c.Close())
	_, err = c.ReadAt(q, 0)
	wantErr(t, "after the end", err, ErrClosed)
}

func TestRemoteMethodsTellWhenDone(t *testing.T) {
	ctx := context.Background()
	disk := newRAM(1 << 20)
	_, _, path := serve(t, ServerConfig{MaxRequest: 4096}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{})
	left := 0
	done := func(err error) {
		if err != nil {
			t.Error(err)
		}
		left--
	}
	p := bytes.Repeat([]byte{7}, 100_000)
	left = 4
	c.StartWrite(p, 0, false, done) // in many parts, but done once
	clear(p)
	c.StartWrite([]byte{8}, 200_000, true, done)
	c.StartZeroes(300_000, 100_000, false, done)
	c.StartFlush(done)
	for left > 0 {
		must(t, c.Progress(ctx))
	}
	if disk.data[99_999] != 7 || disk.data[200_000] != 8 {
		t.Error("not written")
	}
	canceled, cancel := context.WithCancel(ctx)
	time.AfterFunc(10*time.Millisecond, cancel)
	wantErr(t, "nothing to come", c.Progress(canceled), context.Canceled)
	left = 1
	c.StartFlush(done)
	for left > 0 {
		must(t, c.Progress(ctx))
	}
	c.StartWrite(nil, 1<<21, false, func(err error) { wantErr(t, "beyond", err, ErrRange) })
}

// A guest may write nothing, which nbdkit, for one, answers with ENOSPC.
func TestAWriteOfNothingIsDoneWithoutTheServer(t *testing.T) {
	c := answered(nil) // which answers nothing
	defer c.Close()
	for _, fua := range []bool{false, true} {
		told := false
		c.StartWrite(nil, 512, fua, func(err error) {
			told = true
			must(t, err)
		})
		if !told {
			t.Errorf("with FUA %v: it waits for the server", fua)
		}
	}
}

func TestAnswersComeInAnyOrder(t *testing.T) {
	disk := newRAM(1 << 20)
	release := make(chan struct{})
	disk.hook = func(op string, off int64) error {
		if off == 0 {
			<-release
		}
		return nil
	}
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{MaxRequests: 4})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := c.WriteAt([]byte{1}, 0)
		must(t, err)
	})
	for i := range int64(50) {
		wg.Go(func() {
			_, err := c.WriteAt([]byte{1}, 4096+i)
			must(t, err)
			if i == 49 {
				close(release)
			}
		})
	}
	wg.Wait()
}

func TestManyGoroutinesShareAConnection(t *testing.T) {
	disk := newRAM(1 << 20)
	_, _, path := serve(t, ServerConfig{MaxRequests: 8}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{MaxRequests: 16})
	ctx, cancel := context.WithCancel(context.Background())
	var run, wg sync.WaitGroup
	run.Go(func() {
		for c.Progress(ctx) == nil {
		}
	})
	for g := range int64(24) {
		wg.Go(func() {
			p, q := make([]byte, 30_000), make([]byte, 30_000)
			for i := range 30 {
				for j := range p {
					p[j] = byte(int(g) + i)
				}
				n := 1 + (i*7919)%len(p)
				if _, err := c.WriteAt(p[:n], g*40_000); err != nil {
					t.Error(err)
				}
				if _, err := c.ReadAt(q[:n], g*40_000); err != nil || !bytes.Equal(p[:n], q[:n]) {
					t.Errorf("goroutine %d reads something else: %v", g, err)
				}
			}
		})
	}
	wg.Wait()
	cancel()
	run.Wait()
}

func TestErrorsOfTheDiskReachTheClient(t *testing.T) {
	disk := newRAM(1 << 20)
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk})
	c := dial(t, path, ClientConfig{})
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.ESHUTDOWN, syscall.EPERM, syscall.EINVAL, syscall.EIO} {
		disk.hook = func(string, int64) error { return &net.OpError{Op: "x", Err: errno} }
		_, err := c.WriteAt([]byte{1}, 5)
		wantErr(t, "write", err, errno)
		var re *RequestError
		if !errors.As(err, &re) || re.Off != 5 || re.Len != 1 || re.Command != "write" {
			t.Errorf("error %v", err)
		}
	}
	disk.hook = func(string, int64) error { return errors.New("something else") }
	wantErr(t, "sync", c.Sync(), syscall.EIO)
	disk.hook = nil
	must(t, c.Sync())
}

func TestRequestsBeyondTheLimitsAreRefusedAndTheConnectionGoesOn(t *testing.T) {
	_, _, path := serve(t, ServerConfig{MaxRequest: 4096}, ExportConfig{Disk: newRAM(1 << 20)})
	c := dial(t, path, ClientConfig{})
	for _, tc := range []struct {
		req  request
		data int
		want syscall.Errno
	}{
		{request{cmd: cmdWrite, n: 8192}, 8192, syscall.EINVAL},
		{request{cmd: cmdRead, n: 1 << 31}, 0, syscall.EINVAL},
		{request{cmd: cmdRead, off: 1 << 63, n: 1}, 0, syscall.EINVAL},
		{request{cmd: cmdWrite, off: 1<<64 - 1, n: 512}, 512, syscall.ENOSPC},
		{request{cmd: cmdWriteZeroes, off: 1 << 20, n: 1}, 0, syscall.ENOSPC},
		{request{cmd: 5, n: 1}, 0, syscall.EINVAL},
		{request{cmd: cmdFlush, n: 1}, 0, syscall.EINVAL},
		{request{cmd: cmdWrite, flags: 1 << 9, n: 1}, 1, syscall.EINVAL},
	} {
		err := c.do(tc.req, make([]byte, tc.data), nil)
		wantErr(t, commandName(tc.req.cmd), err, tc.want)
	}
	must(t, c.Sync())
}

func TestRequestsAllocateNothing(t *testing.T) {
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: newRAM(1 << 20)})
	c := dial(t, path, ClientConfig{})
	p := make([]byte, 4096)
	q := make([]byte, 64<<10)
	if n := testing.AllocsPerRun(200, func() {
		c.WriteAt(p, 0)
		c.ReadAt(q, 0)
		c.WriteAt(q, 0)
	}); n > 0 {
		t.Errorf("%v allocations for three requests, both sides together", n)
	}
}

// crowd is a disk whose reads wait for each other, and count how many there
// are at a time.
type crowd struct {
	*ram
	mu      sync.Mutex
	now     int
	most    int
	release chan struct{}
}

func (d *crowd) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	d.now++
	d.most = max(d.most, d.now)
	d.mu.Unlock()
	<-d.release
	d.mu.Lock()
	d.now--
	d.mu.Unlock()
	return d.ram.ReadAt(p, off)
}

func (d *crowd) seen() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.most
}

func TestRequestsUnderWayAreBoundedInNumberAndBytes(t *testing.T) {
	for _, tc := range []struct {
		why  string
		cfg  ServerConfig
		want int
	}{
		{"requests", ServerConfig{MaxRequests: 5}, 5},
		{"bytes", ServerConfig{MaxRequest: 4096, MaxBytes: 3 * 4096}, 3},
	} {
		synctest.Test(t, func(t *testing.T) {
			disk := &crowd{ram: newRAM(1 << 20), release: make(chan struct{})}
			srv := NewServer(tc.cfg)
			_, err := srv.Export(ExportConfig{Disk: disk})
			must(t, err)
			a, b := net.Pipe()
			var wg sync.WaitGroup
			wg.Go(func() { srv.ServeConn(context.Background(), b) })
			c, err := NewClient(context.Background(), a, ClientConfig{MaxRequests: 16})
			must(t, err)
			var reads sync.WaitGroup
			for i := range int64(16) {
				reads.Go(func() {
					if _, err := c.ReadAt(make([]byte, 4096), i*4096); err != nil {
						t.Errorf("%s: %v", tc.why, err)
					}
				})
			}
			time.Sleep(time.Second) // everybody has come as far as he can
			if n := disk.seen(); n != tc.want {
				t.Errorf("%s: %d reads under way, want %d", tc.why, n, tc.want)
			}
			close(disk.release)
			reads.Wait()
			if n := disk.seen(); n != tc.want {
				t.Errorf("%s: %d reads at a time, want at most %d", tc.why, n, tc.want)
			}
			c.Close()
			wg.Wait()
		})
	}
}

func TestFUAIsAnsweredWhenStable(t *testing.T) {
	ctx := context.Background()
	disk := newRAM(1 << 20)
	var log []string
	disk.hook = func(op string, _ int64) error { log = append(log, op); return nil } // one request at a time
	_, _, path := serve(t, ServerConfig{}, ExportConfig{Disk: disk, MaxClients: 2})  // the former may be on its way out
	for _, knows := range []bool{true, false} {                                      // whether the server does
		c, err := Dial(ctx, "unix", path, ClientConfig{})
		must(t, err)
		c.info.FUA = knows
		for name, start := range map[string]func(done func(error)){
			"write":  func(done func(error)) { c.StartWrite([]byte{1}, 4096, true, done) },
			"zeroes": func(done func(error)) { c.StartZeroes(0, 4096, true, done) },
			"flush":  c.StartFlush,
			"trim":   func(done func(error)) { done(c.do(request{flags: cmdFlagFUA, cmd: cmdTrim, n: 4096}, nil, nil)) },
		} {
			log = nil
			answered := false
			start(func(err error) {
				must(t, err)
				answered = true
			})
			for !answered {
				must(t, c.Progress(ctx))
			}
			if len(log) == 0 || log[len(log)-1] != "sync" {
				t.Errorf("%s with FUA (the server knows it: %v) was answered after %q", name, knows, log)
			}
		}
		must(t, c.Close())
	}
}
