package migrate

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/qemutest"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// parallel has a QEMU use two channels.
func parallel(q *qemutest.VM, m multifd.Method) {
	capabilities(q, "multifd", "events")
	q.Must("migrate-set-parameters", qemutest.Args{"multifd-channels": 2, "multifd-compression": m.String(), "max-bandwidth": 1 << 30})
}

func TestAQEMUTakesAGuestOverChannels(t *testing.T) {
	for _, method := range []multifd.Method{multifd.None, multifd.Zlib, multifd.Zstd} {
		t.Run(method.String(), func(t *testing.T) {
			q, address := incoming(t, func(q *qemutest.VM) { parallel(q, method) })
			g := busyGuest(t, 100)
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			var conns []Conn
			for range 3 {
				c, err := net.Dial("tcp", address)
				check(t, err)
				conns = append(conns, c)
			}
			cfg := SourceConfig{VM: g, State: &g.state, Memory: g.saver, Blocks: g.blocks, Machine: "none", MaxPasses: 3, MaxDowntime: 1}
			cfg.Channels = Channels{Conns: conns[1:], Method: method}
			withZstd(&cfg.Channels)
			check(t, NewSource(cfg).Run(ctx, conns[0]))
			if running, _ := g.runs(); running {
				t.Error("the source's guest runs")
			}
			if !bytes.Equal(q.Memory(0, noneMegabytes<<20), g.blocks[0].Host) {
				t.Error("QEMU's memory is not the guest's")
			}
		})
	}
}

func TestAQEMUsMemoryComesOverChannels(t *testing.T) {
	for _, method := range []multifd.Method{multifd.None, multifd.Zlib, multifd.Zstd} {
		t.Run(method.String(), func(t *testing.T) {
			dir := qemutest.Dir(t)
			content, args := filledQEMU(t, dir)
			q := qemutest.Start(t, dir, args...)
			parallel(q, method)

			g := noneGuest(t)
			var err error
			g.lazy, err = ram.NewLazy(g.blocks)
			check(t, err, g.lazy.Register(&g.state))
			g.devices(t)
			listener, uri := qemutest.Listen(t)
			q.Must("migrate", qemutest.Args{"uri": uri})
			var conns []Conn
			for range 3 {
				c, err := listener.Accept()
				check(t, err)
				conns = append(conns, c)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			cfg := DestinationConfig{VM: g, State: &g.state, Memory: g.lazy, Blocks: g.blocks, Machine: "none"}
			cfg.Channels = Channels{Conns: conns[1:]}
			withZstd(&cfg.Channels)
			check(t, NewDestination(cfg).Run(ctx, conns[0]), g.lazy.Close())
			if running, _ := g.runs(); !running {
				t.Error("the guest does not run")
			}
			if !bytes.Equal(g.blocks[0].Host, content) {
				t.Error("memory is not QEMU's")
			}
		})
	}
}
