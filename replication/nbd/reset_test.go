package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/replication"
	"github.com/gocolo/lockstep/replication/nbd"
)

// resetConn is a TCP connection that is reset, as by a host that has lost its memory of it, when
// so many bytes have gone one way.
type resetConn struct {
	*net.TCPConn
	mu            sync.Mutex
	reads, writes int // bytes until then; negative: it is not
}

// passes returns how many of n bytes may go.
func (c *resetConn) passes(left *int, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if *left >= 0 {
		n = min(n, *left)
		*left -= n
	}
	return n
}

func (c *resetConn) reset() error {
	c.SetLinger(0)
	c.TCPConn.Close()
	return net.ErrClosed
}

func (c *resetConn) Read(p []byte) (int, error) {
	n, err := c.TCPConn.Read(p)
	if c.passes(&c.reads, n) < n {
		return 0, c.reset()
	}
	return n, err
}

func (c *resetConn) Write(p []byte) (int, error) {
	k := c.passes(&c.writes, len(p))
	n, err := c.TCPConn.Write(p[:k])
	if err == nil && k < len(p) {
		err = c.reset()
	}
	return n, err
}

// The connection of a first copy is reset again and again, by one host or the other, while the
// guest writes. Each time the copy goes on where it was, in the same process, until it is there.
func TestAFirstCopyWhoseLinkIsResetGoesOn(t *testing.T) {
	const size, step = 8 << 20, 1 << 20
	for _, side := range []string{"the primary", "the secondary"} {
		t.Run(side, func(t *testing.T) {
			local, _ := image(t, "local", size)
			disk, err := replication.CreateFile(t.TempDir()+"/copy", size)
			must(t, err)
			t.Cleanup(func() { disk.Close() })
			s, err := replication.NewSecondary(disk, replication.SecondaryConfig{Blank: true})
			must(t, err)
			srv := nbd.NewServer(nbd.ServerConfig{})
			_, err = srv.Export(nbd.ExportConfig{Name: "d", Disk: s.Export()})
			must(t, err)
			p, err := replication.NewPrimary(local, replication.PrimaryConfig{Forward: replication.ForwarderConfig{WindowBytes: step / 4}})
			must(t, err)
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			must(t, err)
			defer ln.Close()
			ctx := context.Background()
			var serving sync.WaitGroup
			defer serving.Wait()
			defer func() { p.Stop(ctx, true) }()

			resets := 0
			for done := false; !done; {
				near, err := net.Dial("tcp", ln.Addr().String())
				must(t, err)
				far, err := ln.Accept()
				must(t, err)
				ours := &resetConn{TCPConn: near.(*net.TCPConn), reads: -1, writes: -1}
				theirs := &resetConn{TCPConn: far.(*net.TCPConn), reads: -1, writes: -1}
				if side == "the primary" {
					ours.writes = 2*step + step/2 // in the third step, so that two have been answered
				} else {
					theirs.reads = 2*step + step/2
				}
				serving.Go(func() { srv.ServeConn(ctx, theirs) })
				c, err := nbd.NewClient(ctx, ours, nbd.ClientConfig{Export: "d"})
				must(t, err)
				before := p.Dirty()
				must(t, p.Attach(replication.WithIdentity(c, replication.NewIdentityDisk(s))))
				err = p.Synchronise(ctx, replication.SyncConfig{})
				if done = err == nil; done {
					break
				}
				serving.Wait() // the export lets one client in at a time
				if !errors.Is(err, replication.ErrBroken) || errors.Is(err, nbd.ErrTimeout) {
					t.Errorf("a reset is %v", err)
				}
				if resets++; resets > 2*size/step {
					t.Fatalf("the copy does not come to an end: %d bytes are left", p.Dirty())
				}
				// Another kind of progress would be no sooner there than the next reset.
				if left := p.Dirty(); before > 0 && left > before-step {
					t.Errorf("after reset %d: %d bytes are left, of %d", resets, left, before)
				}
				_, err = p.WriteAt([]byte{byte(resets)}, int64(resets)<<9) // into what has been copied
				must(t, err)
			}
			if resets < 3 {
				t.Errorf("%d resets only", resets)
			}
			must(t, p.Start(ctx))
			must(t, s.Start(ctx))
			must(t, p.Mark(ctx, 1))
			must(t, s.Checkpoint(ctx, 1))
			if !bytes.Equal(contents(t, disk, size), contents(t, local, size)) {
				t.Error("the disks differ")
			}
		})
	}
}
