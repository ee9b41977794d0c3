package protect

import (
	"fmt"
	"slices"
	"strings"

	"github.com/gocolo/lockstep/vmstate"
)

// maxDevices bounds the devices that a side may name.
const maxDevices = 2048

// A device is a device of a guest, as a checkpoint has it: its section is written in that
// version.
type device struct {
	Name     string `json:"name"`
	Instance uint32 `json:"instance,omitempty"`
	Version  uint32 `json:"version"`
}

func (d device) String() string { return fmt.Sprintf("%s/%d", d.Name, d.Instance) }

// describe notes which devices the guest has here, for the next primary or secondary
// to compare. It runs on the goroutine of Run, while there is no session.
func (j *Job) describe() error {
	reg := new(vmstate.Registry)
	if err := j.register(reg); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = reg.Entries()
	return nil
}

// devices returns what describe has noted, as it is said in a hello.
func (j *Job) devices() (all []device) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, e := range j.entries {
		all = append(all, device{e.Name, e.Instance, e.Version})
	}
	return all
}

// loads says whether a checkpoint of a primary that has these devices can be loaded
// here: each is here, in a version that reads theirs, and none is here that the
// primary does not have, which would go on with what it had.
func (j *Job) loads(saved []device) error {
	j.mu.Lock()
	here := j.entries
	j.mu.Unlock()
	return loads(here, saved)
}

func loads(here []vmstate.Entry, saved []device) error {
	is := func(e vmstate.Entry, d device) bool {
		return e.Name == d.Name && e.Instance == d.Instance ||
			slices.Contains(e.Aliases, vmstate.Alias{Name: d.Name, Instance: d.Instance})
	}
	for _, d := range saved {
		i := slices.IndexFunc(here, func(e vmstate.Entry) bool { return is(e, d) })
		switch {
		case i < 0:
			return refuse("the primary's device %q is not here%s", d, ofNetwork(d.Name))
		case d.Version > here[i].Version || d.Version < here[i].MinVersion:
			return refuse("the primary's device %q is of version %d, here versions %d to %d are read", d, d.Version, here[i].MinVersion, here[i].Version)
		}
	}
	for _, e := range here {
		if !slices.ContainsFunc(saved, func(d device) bool { return is(e, d) }) {
			return refuse("the device %q here is not one of the primary's%s", device{Name: e.Name, Instance: e.Instance}, ofNetwork(e.Name))
		}
	}
	return nil
}

// ofNetwork returns, after the name of a device that a NIC or a Proxy registers, which no operator has configured, what
// to look at.
func ofNetwork(device string) string {
	if strings.HasPrefix(device, "lockstep-net-") {
		return " (it is of a network: Config.Network differs)"
	}
	return ""
}
