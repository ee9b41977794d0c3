package protect

import (
	"fmt"
	"sync/atomic"
)

// A network or a disk is for one job: a second one that is given it by mistake, as with a Config
// that is used again, must not disturb the first.

// ownership says whether a network belongs to a job. The zero ownership says that it does not.
type ownership struct{ owned atomic.Bool }

// own takes the network for a job, and reports whether it was free.
func (o *ownership) own() bool { return !o.owned.Swap(true) }

func (o *ownership) disown() { o.owned.Store(false) }

// own takes networks for a job, all or none. disown gives them back, to a job that is not made.
func own(all []Network) (disown func(), err error) {
	var taken []*ownership
	disown = func() {
		for _, o := range taken {
			o.disown()
		}
	}
	for i, n := range all {
		o, ok := n.(interface{ ownedBy() *ownership })
		if !ok {
			continue
		}
		if !o.ownedBy().own() {
			disown()
			return nil, fmt.Errorf("protect: Network %d belongs to a job already", i)
		}
		taken = append(taken, o.ownedBy())
	}
	return disown, nil
}

// ownedBy lets own find the ownership of a NIC and of a Proxy.
func (o *ownership) ownedBy() *ownership { return o }
