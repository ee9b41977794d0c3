package protect

import (
	"strings"
	"testing"
)

// Each side compares for itself, whatever the other one has found.
func TestWhatOneSideAloneHasIsFoundByEither(t *testing.T) {
	whole := func() *offer {
		return &offer{Machine: "pc", Memory: []part{{"ram", 1}}, Disks: []part{{"d0", 2}}, Networks: []link{{"net0", "compare"}}}
	}
	if err := whole().fits(whole()); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(o *offer){
		"machine":      func(o *offer) { o.Machine = "q35" },
		"memory block": func(o *offer) { o.Memory = append(o.Memory, part{"rom", 1}) },
		"bytes":        func(o *offer) { o.Memory[0].Size = 7 },
		"disk":         func(o *offer) { o.Disks = append(o.Disks, part{"d1", 2}) },
		"network":      func(o *offer) { o.Networks = append(o.Networks, link{"net1", "compare"}) },
		"there":        func(o *offer) { o.Networks[0].Terms = "continuous" },
	} {
		other := whole()
		change(other)
		for _, err := range []error{whole().fits(other), other.fits(whole())} {
			if err == nil || !strings.Contains(err.Error(), want) || !isRefusal(err) {
				t.Errorf("%v, want a refusal that names the %s", err, want)
			}
		}
	}
}
