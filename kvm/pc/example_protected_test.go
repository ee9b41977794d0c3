package pc_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"github.com/gocolo/lockstep/colo/filter/tap"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/kvm/pc"
	"github.com/gocolo/lockstep/replication"
)

// A whole VMM: a Linux guest with two disks, a network card with offloads, and randomness, protected
// by the other host on which the same program runs. The one that starts loads the kernel.
func Example_protected() {
	run := func(ctx context.Context, name string, start bool, peer protect.Peer, arbiter failover.Arbiter,
		kernel, initrd io.ReaderAt, root, data replication.Disk) error {
		var m *pc.Machine
		var disks []*protect.Disk
		for i, d := range []protect.DiskConfig{{Name: "root", Image: root}, {Name: "data", Image: data}} {
			d.Grown = func(size int64) {
				if err := m.DiskGrown(i, size); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
			d, err := protect.NewDisk(d)
			if err != nil {
				return err
			}
			disks = append(disks, d)
		}

		// The frames of both have a header in front, in which each says what it has left undone.
		const header = 12
		wire, err := tap.Open(tap.Config{Name: "guest%d", VNetHdrLen: header, Offload: tap.OffloadTCP})
		if err != nil {
			return err
		}
		nic, err := protect.NewProxy(protect.ProxyConfig{
			Uplink: wire, VNetHdr: header,
			Deliver: func(frame []byte) error { return m.Cards()[0].ReceivePacket(frame) },
		})
		if err != nil {
			return errors.Join(err, wire.Close())
		}

		m, err = pc.Create(pc.Config{VCPUs: 2, Memory: 512 << 20, Devices: pc.Devices{
			Console: os.Stdout,
			Disks:   []pc.Disk{{Storage: disks[0], Requests: 8}, {Storage: disks[1], ID: "data"}},
			NICs:    []pc.NIC{{Uplink: nic, VNetHdr: header, MAC: [6]byte{0x52, 0x54, 0, 0, 0, 1}}},
			Random:  pc.Random{Source: rand.Reader},
		}})
		if err != nil {
			return errors.Join(err, wire.Close())
		}
		defer m.Close()
		if start {
			if err := m.LoadLinux(kernel, initrd, "console=ttyS0 root=/dev/vda"); err != nil {
				return errors.Join(err, wire.Close())
			}
		}
		offer, judge, err := m.VM().MatchCPU() // unlike CPUs are refused before any memory moves
		if err != nil {
			return errors.Join(err, wire.Close())
		}
		job, err := protect.New(protect.Config{
			Name: "db1", Host: name, Guest: m, Start: start, Network: []protect.Network{nic}, Disks: disks,
			Peer: peer, Arbiter: arbiter, Offer: offer, Judge: judge,
		})
		if err != nil {
			return errors.Join(err, wire.Close())
		}

		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + len(m.VM().VCPUs()))
		ctx, stop := context.WithCancelCause(ctx)
		var running sync.WaitGroup
		running.Go(func() { // the Machine is paused until the job resumes it
			err := m.Run(ctx)
			for (errors.Is(err, pc.ErrPowerOff) || errors.Is(err, pc.ErrReset)) && job.State() == protect.Following {
				err = m.Run(ctx) // the guest of the other host has not ended yet: the next checkpoint takes this one back
			}
			stop(err)
		})
		running.Go(func() { stop(job.Run(ctx)) })
		running.Wait()
		err = context.Cause(ctx)
		if errors.Is(err, pc.ErrPowerOff) {
			fmt.Println("the guest has switched itself off")
		}
		return err
	}
	_ = run
}
