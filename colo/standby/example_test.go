package standby_test

import (
	"fmt"
	"os"

	"github.com/gocolo/lockstep/colo/standby"
	"github.com/gocolo/lockstep/qemufile"
)

// A stream that a QEMU has written is kept as it would be in a session, and can be
// written again for a QEMU to load (-incoming).
func ExampleCopy_Read() {
	f, err := os.Open("testdata/none-initial.bin")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close()
	g := standby.New(standby.Config{MaxRAM: 1 << 30})
	defer g.Close()
	if err := g.Read(qemufile.NewReader(f)); err != nil {
		fmt.Println(err)
		return
	}
	in, err := g.Info()
	fmt.Println(in.Machine, len(in.Blocks), "blocks", err)
	// Output: none 1 blocks <nil>
}
