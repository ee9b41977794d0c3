package tied

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

// tiedEnv makes the test binary start a process that is tied to it, and which stops
// itself, say so, and hang.
const tiedEnv = "LOCKSTEP_TEST_TIED"

func TestMain(m *testing.M) {
	if os.Getenv(tiedEnv) != "" {
		cmd := exec.Command("sh", "-c", "kill -STOP $$")
		cmd.Stdout = os.Stdout
		if _, err := Start(cmd); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("started")
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

func TestATiedProcessDoesNotOutliveItsParent(t *testing.T) {
	require.Outside(t, require.Processes)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), tiedEnv+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	release, err := Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	defer cmd.Wait()
	defer cmd.Process.Kill()
	lines := bufio.NewReader(out)
	if line, err := lines.ReadString('\n'); line != "started\n" {
		t.Fatalf("%q, %v", line, err)
	}
	cmd.Process.Kill()
	over := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, lines); over <- err }() // both have it open
	select {
	case err := <-over:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("the process that was tied lives on")
	}
}
