package diff_test

import (
	"bytes"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/diff"
)

// clock is a device with one field.
type clock struct{ seconds uint32 }

func (c *clock) VMState(f *vmstate.Fields) { f.Uint32("seconds", &c.seconds) }

// stream returns the migration stream of a machine with such a clock.
func stream(c *clock) []byte {
	var reg vmstate.Registry
	if err := reg.Register(vmstate.Entry{Name: "clock"}, c); err != nil {
		panic(err)
	}
	var b bytes.Buffer
	w := qemufile.NewWriter(&b)
	vmstate.PutFileHeader(w)
	vmstate.PutConfiguration(w, vmstate.Configuration{Machine: "example"})
	if err := reg.SaveDevices(w); err != nil {
		panic(err)
	}
	vmstate.PutEOF(w)
	reg.PutVMDesc(w)
	if err := w.Flush(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// Two streams of one machine, a minute apart.
func ExampleCompare() {
	read := func(c *clock) *diff.State {
		s, err := diff.Read(qemufile.NewReader(bytes.NewReader(stream(c))), diff.Config{})
		if err != nil {
			fmt.Println(err)
		}
		return s
	}
	a, b := read(&clock{seconds: 0}), read(&clock{seconds: 60})
	for _, d := range diff.Compare(a, b) {
		fmt.Println(d)
	}
	fmt.Println(len(diff.Load(a, b)), "reasons not to load it")
	// Output:
	// value clock: seconds: 0 | 60
	// 0 reasons not to load it
}
