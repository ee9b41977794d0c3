package migrate

import (
	"context"
	"io"

	"github.com/gocolo/lockstep/internal/wait"
	"github.com/gocolo/lockstep/qemufile"
)

// VM is the guest that is moved. Its methods are those of colo.VM.
type VM interface {
	// Pause stops the guest and its devices.
	Pause(ctx context.Context) error
	// Resume lets it run.
	Resume(ctx context.Context) error
}

// A Conn is a connection to the other side. Close makes a Read or Write that waits return;
// a net.Conn is one.
type Conn interface {
	io.ReadWriteCloser
}

// Reconnect returns another connection after one has broken in postcopy, for the reason
// given. An error ends the migration with [ErrPaused].
type Reconnect func(ctx context.Context, broken error) (Conn, error)

// wire is a connection in use.
type wire struct {
	conn Conn
	r    *qemufile.Reader
	w    *qemufile.Writer
	stop func() bool
}

// open takes a connection, which is closed when ctx ends.
func open(ctx context.Context, c Conn) *wire {
	return &wire{
		conn: c, r: qemufile.NewReader(c), w: qemufile.NewWriter(c),
		stop: wait.AtEnd(ctx, func() { c.Close() }),
	}
}

func (w *wire) close() {
	w.stop()
	w.conn.Close()
}
