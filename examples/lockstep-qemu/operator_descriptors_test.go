package main

import (
	"context"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
)

// lacking is a listener whose process has no descriptor left for a while.
type lacking struct {
	net.Listener
	times atomic.Int32 // that it fails
}

func (l *lacking) Accept() (net.Conn, error) {
	if l.times.Add(-1) >= 0 {
		return nil, os.NewSyscallError("accept4", syscall.EMFILE)
	}
	return l.Listener.Accept()
}

// Without its socket a standby that lives would be told of as one that does not run, and could not be
// promoted.
func TestOrdersAreTakenAgainWhenThereAreDescriptorsAgain(t *testing.T) {
	t.Parallel()
	dir := qemutest.Dir(t)
	l, _, err := listen(socketIn(dir, "standby"))
	if err != nil {
		t.Fatal(err)
	}
	short := &lacking{Listener: l}
	short.times.Store(2)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		takeOrders(ctx, short, nil, func() any { return "well" })
		close(ended)
	}()
	a, err := tell(t.Context(), socketIn(dir, "standby"), order{Do: "status"})
	if err != nil || string(a.Status) != `"well"` {
		t.Errorf("%s, %v", a.Status, err)
	}
	cancel()
	<-ended
}
