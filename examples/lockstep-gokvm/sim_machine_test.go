package main

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// The pairs here are whole: two hosts on loopback, with disk and network, but with a
// guest in Go, whose frames an oracle understands.

// simGuest returns the guest of both hosts.
func simGuest() colotest.VMConfig {
	return colotest.VMConfig{Touch: 8, Interval: time.Millisecond, Disk: simDisk, DiskEvery: 4, Seed: 3}
}

// A simMachine is a machine without a hypervisor.
type simMachine struct {
	*colotest.VM
	ends    chan error // what ends the guest by itself
	console *console
	stuck   error // Resume fails with it
	told    atomic.Int64
}

func (m *simMachine) Resume(ctx context.Context) error {
	if m.stuck != nil {
		return m.stuck
	}
	return m.VM.Resume(ctx)
}

func newSimMachine(devices gokvmhost.Config) (*simMachine, error) {
	cfg := simGuest()
	if devices.Uplink != nil {
		header := make([]byte, devices.VNetHdr)
		cfg.Output = func(frame []byte) error {
			return devices.Uplink.WritePacket(append(header[:len(header):len(header)], frame...))
		}
	}
	if devices.Disk != nil {
		cfg.Write = func(p []byte, off int64, flush bool) error {
			_, err := devices.Disk.WriteAt(p, off)
			if err == nil && flush {
				err = devices.Disk.Sync()
			}
			return err
		}
	}
	g, err := colotest.NewVM(cfg)
	c, _ := devices.Console.(*console)
	return &simMachine{VM: g, ends: make(chan error), console: c}, err
}

// Close fails if keys may still come.
func (m *simMachine) Close() error {
	err := m.VM.Close()
	if m.console != nil {
		if _, _, ours := m.console.mode(); ours {
			err = errors.Join(err, errors.New("the machine is closed before its console"))
		}
	}
	return err
}

func (m *simMachine) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var group sync.WaitGroup
	defer group.Wait()
	group.Go(func() {
		select {
		case err := <-m.ends:
			cancel(err)
		case <-ctx.Done():
		}
	})
	return m.VM.Run(ctx)
}

func (m *simMachine) DirtyLog() ram.DirtyLog { return m.VM }

func (m *simMachine) ReceivePacket([]byte) error { return nil }

// DiskGrown notes how long the guest was told that its disk is.
func (m *simMachine) DiskGrown(size int64) error { m.told.Store(size); return nil }

func (m *simMachine) Input(p []byte) (int, error) { return len(p), nil }
