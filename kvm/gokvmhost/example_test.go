package gokvmhost_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A Linux guest in a machine of gokvm's, with what a primary's session needs of it:
// the Host itself is its VM, the registry its devices and memory.
func Example() {
	run := func(ctx context.Context, kernel, initrd io.ReaderAt, disk gokvmhost.Disk, uplink gokvmhost.Uplink) error {
		m, err := gokvmhost.New(gokvmhost.MachineConfig{VCPUs: 2, Memory: 512 << 20})
		if err != nil {
			return err
		}
		defer gokvmhost.CloseMachine(m)
		if err := gokvmhost.LoadLinux(m, kernel, initrd, "console=ttyS0 root=/dev/vda"); err != nil {
			return err
		}
		h, err := gokvmhost.Attach(m, gokvmhost.Config{
			Console: os.Stdout, Disk: disk, Uplink: uplink, MAC: [6]byte{0x52, 0x54, 0, 0, 0, 1},
		})
		if err != nil {
			return err
		}
		defer h.Close()

		var state vmstate.Registry
		memory := ram.NewSaver(h.Blocks(), h, ram.SaverConfig{})
		if err := errors.Join(
			h.Register(&state),
			state.RegisterLive(vmstate.Entry{Name: ram.SectionName, Version: ram.Version, MinVersion: ram.Version}, memory, nil),
		); err != nil {
			return err
		}
		// colo.NewPrimary(conn, colo.PrimaryConfig{VM: h, State: &state, …}) goes here.

		if err := h.Resume(ctx); err != nil { // a Host begins paused
			return err
		}
		err = h.Run(ctx)
		if errors.Is(err, gokvmhost.ErrPowerOff) {
			fmt.Println("the guest has switched itself off")
			err = nil
		}
		return err
	}
	_ = run
}
