package main

import (
	"context"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/colo/protect/control"
	"github.com/gocolo/lockstep/colo/protect/watch"
	"github.com/gocolo/lockstep/event"
	"github.com/gocolo/lockstep/event/qmp"
	"github.com/gocolo/lockstep/internal/cli"
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

// checkAddresses returns an error unless the sides can listen at the addresses of their monitors and
// pages. A side that found that out by itself would end a run that has begun.
func checkAddresses(o *trial.Config) error {
	for _, side := range o.Sides() {
		// Their form was checked with the options.
		monitor, _ := trial.MonitorOf(o.QMP, side)
		page, _ := trial.PageOf(o.HTTP, side)
		if err := canListen(monitor, qmp.Listen); err != nil {
			return cli.Listening(fmt.Sprintf("-qmp: the monitor of the side %s", side), err)
		}
		if err := canListen(page, watch.Listen); err != nil {
			return cli.Listening(fmt.Sprintf("-http: the page of the side %s", side), err)
		}
	}
	return nil
}

// canListen listens for a moment at an address, if there is one.
func canListen[L io.Closer](address string, listen func(string) (L, error)) error {
	if address == "" {
		return nil
	}
	l, err := listen(address)
	if err != nil {
		return err
	}
	return l.Close()
}
