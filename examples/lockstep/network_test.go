package main

import (
	"bytes"
	"context"
	"testing"

	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/internal/trial"
)

// unplugged is a way to the client that nothing comes by.
type unplugged struct{}

func (unplugged) ReadPacket() ([]byte, error) { select {} }
func (unplugged) WritePacket([]byte) error    { return nil }
func (unplugged) Close() error                { return nil }

func TestTheGuestStandsFromWhenItsHostFollowsAndTheClientHearsWhenItIsAlone(t *testing.T) {
	proxy, err := protect.NewProxy(protect.ProxyConfig{Uplink: unplugged{}, Deliver: func([]byte) error { return nil }, Continuous: true})
	if err != nil {
		t.Fatal(err)
	}
	var client bytes.Buffer
	for _, s := range []*standing{{alone: true}, nil} { // nil: output is compared, and the guest runs
		n := &network{Proxy: proxy, out: filter.NewConn(&client, filter.ConnConfig{}), standing: s}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // or it would wait for its Run
		if err := n.Follow(ctx); err == nil {
			t.Error("it follows without a Run")
		}
		if s != nil && s.alone {
			t.Error("a resume is still meant")
		}
		if err := n.Failover(); err != nil {
			t.Fatal(err)
		}
		if s != nil && !s.alone {
			t.Error("alone, its guest stands still")
		}
		if said, err := filter.NewConn(&client, filter.ConnConfig{}).ReadPacket(); err != nil || string(said) != trial.TookOver {
			t.Errorf("the client hears %q, %v", said, err)
		}
	}
}
