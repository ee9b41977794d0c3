package main

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/qemutest"
)

func TestHowAQEMUHasEndedIsSaidInPlainWords(t *testing.T) {
	if testing.Short() {
		t.Skip("-short")
	}
	for script, words := range map[string]string{
		"kill -ABRT $$": "it has crashed, by a fault of QEMU's own",
		"kill -SEGV $$": "it has crashed, by a fault of QEMU's own",
		"kill -KILL $$": "it was killed by somebody, or by the kernel for want of memory",
		"kill -TERM $$": "it was ended by a signal of somebody's",
		"exit 1":        "it has ended with exit status 1",
	} {
		err := exec.Command("sh", "-c", script).Run()
		var exit *exec.ExitError
		if got := ended(err); !strings.HasPrefix(got.Error(), words) || !errors.As(got, &exit) {
			t.Errorf("%s: %v", script, got)
		}
	}
}

func TestAMonitorThatDiesWithItsQEMUIsToldFromOneThatHangsUp(t *testing.T) {
	sock := filepath.Join(qemutest.Dir(t), "qmp")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as a process that dies leaves it
	if got := gone(sock, io.EOF); !strings.Contains(got.Error(), "may still be there") || !errors.Is(got, io.EOF) {
		t.Errorf("%v", got)
	}
	l.Close()
	if got := gone(sock, io.EOF); !strings.Contains(got.Error(), "the QEMU has died") || !errors.Is(got, io.EOF) {
		t.Errorf("%v", got)
	}
	refused := errors.New("refused")
	if got := gone(sock, refused); got != refused {
		t.Errorf("%v", got)
	}
}
