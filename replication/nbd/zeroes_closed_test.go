package nbd

import (
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
)

// trimless is a disk that can zero a range only by writing zeroes.
type trimless struct{ *ram }

func (trimless) Trim(_, _ int64) error        { return syscall.EINVAL }
func (trimless) WriteZeroes(_, _ int64) error { return syscall.EINVAL }

// A takeover waits until no request of the former primary reaches the disk any
// more, and one request may zero 4 GiB.
func TestZeroesThatHaveToBeWrittenEndWithTheirConnection(t *testing.T) {
	for name, req := range map[string]request{
		"zeroes that must not be a hole": {cmd: cmdWriteZeroes, flags: cmdFlagNoHole},
		"zeroes":                         {cmd: cmdWriteZeroes},
		"a trim":                         {cmd: cmdTrim},
	} {
		ends := map[string]func(stop context.CancelFunc, e *Export) error{
			"the server stops":     func(stop context.CancelFunc, _ *Export) error { stop(); return nil },
			"the export is closed": func(_ context.CancelFunc, e *Export) error { return e.Close(context.Background()) },
		}
		for how, end := range ends {
			t.Run(name+", "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const blocks = 8
					disk := newRAM(blocks * len(zeroes))
					writes, release := 0, make(chan struct{})
					disk.hook = func(op string, _ int64) error {
						if op == "write" { // by one worker, since there is one request
							writes++
							<-release
						}
						return nil
					}
					srv := NewServer(ServerConfig{})
					e, err := srv.Export(ExportConfig{Disk: trimless{disk}})
					must(t, err)
					a, b := net.Pipe()
					ctx, stop := context.WithCancel(context.Background())
					defer stop()
					var wg sync.WaitGroup
					defer wg.Wait()
					wg.Go(func() { srv.ServeConn(ctx, b) })
					c, err := NewClient(context.Background(), a, ClientConfig{})
					must(t, err)
					defer c.Close()

					req.n = blocks * uint32(len(zeroes))
					var asked error
					wg.Go(func() { asked = c.do(req, nil, nil) })
					synctest.Wait() // the first block is being written
					if writes != 1 {
						t.Errorf("%d writes before the end", writes)
					}
					wg.Go(func() {
						if err := end(stop, e); err != nil {
							t.Error(err)
						}
					})
					synctest.Wait() // the connection is closed, and the write under way is waited for
					close(release)
					wg.Wait()
					if writes != 1 {
						t.Errorf("%d of %d blocks were written", writes, blocks)
					}
					if asked == nil || errors.As(asked, new(*RequestError)) {
						t.Errorf("the client was told %v", asked)
					}
				})
			})
		}
	}
}
