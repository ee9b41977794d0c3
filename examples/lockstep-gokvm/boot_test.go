package main

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/kvm/gokvmhost"
)

// brief is a machine whose user wants no more of it than that it runs.
type brief struct {
	*simMachine
	enough func()
}

func (m brief) Resume(ctx context.Context) error {
	defer m.enough()
	return m.simMachine.Resume(ctx)
}

func TestTheConsoleIsClosedBeforeTheMachine(t *testing.T) {
	o, err := parseOptions([]string{modeBoot, "-kernel", "none", "-mem", "32M"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.hw = hardware{
		probe: func() error { return nil },
		machine: func(_ options, devices gokvmhost.Config) (machine, error) {
			m, err := newSimMachine(devices)
			return brief{m, cancel}, err
		},
	}
	std := stdio{strings.NewReader(""), io.Discard, io.Discard}
	c := newConsole(std, false, nil)
	if err := boot(ctx, o, c, newPrinter(o, std, c)); err != nil {
		t.Error(err) // of the machine's Close
	}
}
