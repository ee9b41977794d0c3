package pc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gocolo/lockstep/kvm/pc"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// A Linux guest, with what a primary's session needs of it: the Machine itself is its VM,
// the registry its devices and memory.
func Example() {
	run := func(ctx context.Context, kernel, initrd io.ReaderAt, disk pc.Storage, uplink pc.Uplink) error {
		m, err := pc.Create(pc.Config{VCPUs: 2, Memory: 512 << 20, Devices: pc.Devices{
			Console: os.Stdout,
			Disks:   []pc.Disk{{Storage: disk}},
			NICs:    []pc.NIC{{Uplink: uplink, MAC: [6]byte{0x52, 0x54, 0, 0, 0, 1}}},
		}})
		if err != nil {
			return err
		}
		defer m.Close()
		if err := m.LoadLinux(kernel, initrd, "console=ttyS0 root=/dev/vda"); err != nil {
			return err
		}

		var state vmstate.Registry
		memory := ram.NewSaver(m.Blocks(), m, ram.SaverConfig{})
		if err := errors.Join(
			m.Register(&state),
			state.RegisterLive(vmstate.Entry{Name: ram.SectionName, Version: ram.Version, MinVersion: ram.Version}, memory, nil),
		); err != nil {
			return err
		}
		// colo.NewPrimary(conn, colo.PrimaryConfig{VM: m, State: &state, …}) goes here.

		if err := m.Resume(ctx); err != nil { // a Machine begins paused
			return err
		}
		err = m.Run(ctx)
		if errors.Is(err, pc.ErrPowerOff) {
			fmt.Println("the guest has switched itself off")
			err = nil
		}
		return err
	}
	_ = run
}
