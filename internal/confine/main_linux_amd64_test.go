package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/internal/require"
)

// programEnv makes the test binary the command, and what the command runs.
const programEnv = "LOCKSTEP_TEST_CONFINE"

func TestMain(m *testing.M) {
	if os.Getenv(programEnv) == "" {
		os.Exit(m.Run())
	}
	switch os.Args[1] {
	case "computes":
		done := make(chan struct{})
		go close(done)
		<-done
	case "fails":
		os.Exit(3)
	case "starts a process":
		exec.Command(os.Args[0], "computes").Run()
	case "opens the device":
		if f, err := os.OpenFile(device, os.O_RDWR, 0); err == nil {
			f.Close()
		}
	default:
		main()
	}
}

// Even a program that takes no notice of what it is refused is found out.
func TestAProgramThatUsesWhatIsOutsideFails(t *testing.T) {
	require.Outside(t, require.Processes)
	if os.Geteuid() != 0 {
		require.Missing(t, require.NetNS, os.ErrPermission)
	}
	for does, want := range map[string]struct {
		status int
		said   string
	}{
		"computes":         {0, ""},
		"fails":            {3, ""},
		"starts a process": {1, "confine: the program has started a process; -v says which test\n"},
		"opens the device": {1, "confine: the program has opened /dev/kvm\n"},
	} {
		t.Run(does, func(t *testing.T) {
			if _, err := os.Stat(device); err != nil && strings.Contains(does, "device") {
				require.Missing(t, require.KVM, err)
			}
			cmd := exec.Command(os.Args[0], os.Args[0], does)
			cmd.Env = append(os.Environ(), programEnv+"=1")
			said, err := cmd.CombinedOutput()
			if got := cmd.ProcessState.ExitCode(); got != want.status || string(said) != want.said {
				t.Errorf("status %d, %q, %v", got, said, err)
			}
		})
	}
}
