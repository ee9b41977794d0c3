package linuxguest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/socket"
)

// monitor serves one conversation as QEMU's monitor holds it.
func monitor(t *testing.T, answer string) string {
	t.Helper()
	path := filepath.Join(socket.Dir(t), "m")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprint(conn, "QEMU 7.2 monitor - type 'help' for more information\r\n(qemu) ")
		line, _ := bufio.NewReader(conn).ReadString('\n')
		fmt.Fprintf(conn, "%s\r\n%s", line[:len(line)-1], answer)
	}()
	return path
}

func TestTheEmulatorIsAskedPastItsGreetingAndItsEcho(t *testing.T) {
	m := &Machine{cfg: MachineConfig{Monitor: monitor(t, "RIP=ffff (a)\r\nHLT=1\r\n(qemu) ")}}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if said, err := m.Ask(ctx, "info registers"); err != nil || said != "RIP=ffff (a)\nHLT=1\n" {
		t.Errorf("%q, %v", said, err)
	}
}

func TestAnEmulatorThatIsGoneOrSaysTooMuchIsAnError(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m := &Machine{cfg: MachineConfig{Monitor: monitor(t, "half an ans")}}
	if said, err := m.Ask(ctx, "info registers"); err == nil {
		t.Errorf("%q of a monitor that broke off", said)
	}
	if _, err := new(Machine).Ask(ctx, "info registers"); err == nil {
		t.Error("a machine without a monitor answers")
	}
	m.cfg.Monitor = filepath.Join(socket.Dir(t), "none")
	if _, err := m.Ask(ctx, "info registers"); !errors.As(err, new(*net.OpError)) {
		t.Error(err)
	}
}
