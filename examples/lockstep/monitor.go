package main

import (
	"context"

	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/internal/trial"
)

// serve runs a job with the handles that the command line asks for, and tells the parent
// where they are.
func serve(ctx context.Context, cfg trial.SideConfig, reports *trial.Reporter, job control.Runner, c control.Config) error {
	c.CheckpointDelay = cfg.Interval
	c.Listening = func(name, address string) {
		reports.Send(trial.Report{Handle: &trial.Handle{Name: name, Address: address}})
	}
	handles := control.Handles{QMP: cfg.QMP, HTTP: cfg.HTTP, HTTPControl: cfg.HTTPControl}
	return handles.Run(ctx, job, c)
}

// watched returns the bus on which a network publishes which flows differ: nil if there is
// neither a page nor a monitor.
func watched(cfg trial.SideConfig, bus *event.Bus) *event.Bus {
	if cfg.HTTP == "" && cfg.QMP == "" {
		return nil
	}
	return bus
}
