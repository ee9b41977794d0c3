// Package qmp is the client of package event/qmp, by its old name.
package qmp

import (
	"context"

	"github.com/gocolo/lockstep/event/qmp"
)

// Error is what a monitor answers instead of a result.
type Error = qmp.Error

// Client is a connection to a monitor.
type Client = qmp.Client

// Split takes an address as QEMU writes it: see [qmp.Split].
func Split(addr string) (network, address string) { return qmp.Split(addr) }

// Dial connects to a monitor: see [qmp.Dial].
func Dial(ctx context.Context, addr string) (*Client, error) { return qmp.Dial(ctx, addr) }
