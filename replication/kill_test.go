//go:build unix

package replication

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gocolo/lockstep/internal/require"
)

var killCount = flag.Int("kills", 25, "how often the secondary's process is killed")

const (
	killSize   = 256 << 10
	killBlocks = killSize / BlockSize
)

// killScript returns the blocks that the primary writes in an epoch, and their content. Each
// process computes the same.
func killScript(epoch uint64) (blocks []int64, fill byte) {
	rng := rand.New(rand.NewPCG(epoch, 3))
	for range 1 + rng.IntN(20) {
		blocks = append(blocks, rng.Int64N(killBlocks))
	}
	return blocks, byte(epoch)
}

// secondaryProcess is a secondary with a journal that makes checkpoints, and
// says so, until it is killed.
func secondaryProcess(dir string) error {
	ctx := context.Background()
	d, err := OpenFile(filepath.Join(dir, "disk"))
	if err != nil {
		return err
	}
	j, err := OpenJournalFiles(filepath.Join(dir, "journal"), 1<<20)
	if err != nil {
		return err
	}
	s, err := NewSecondary(d, SecondaryConfig{Journal: j})
	if err != nil {
		return err
	}
	if err := s.Start(ctx); err != nil {
		return err
	}
	x := s.Export()
	fmt.Println("epoch 0")
	for epoch := uint64(1); ; epoch++ {
		blocks, fill := killScript(epoch)
		for i, b := range blocks {
			if _, err := x.WriteAt(bytes.Repeat([]byte{fill}, BlockSize), b*BlockSize); err != nil {
				return err
			}
			if i%3 == 0 { // of its guest, which nobody sees after the kill
				if _, err := s.WriteAt([]byte("own"), b*BlockSize); err != nil {
					return err
				}
			}
		}
		if err := s.Checkpoint(ctx, epoch); err != nil {
			return err
		}
		fmt.Println("epoch", epoch)
	}
}

// Whenever the process of a secondary is killed with SIGKILL, its disk comes
// back as that of the last checkpoint that it made.
func TestJournalSurvivesSIGKILLAtAnyMoment(t *testing.T) {
	if dir := os.Getenv("REPLICATION_KILL_DIR"); dir != "" {
		fmt.Fprintln(os.Stderr, secondaryProcess(dir))
		os.Exit(1)
	}
	require.Outside(t, require.Processes)
	ctx := context.Background()
	dir := t.TempDir()
	d, err := CreateFile(filepath.Join(dir, "disk"), killSize)
	must(t, err)
	kills := *killCount
	if testing.Short() || raceEnabled {
		kills = 5
	}
	rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	var checkpoints uint64
	for kill := range kills {
		start := read(t, d, 0, killSize)
		must(t, d.Close()) // the process has it to itself
		cmd := exec.Command(os.Args[0], "-test.run=^TestJournalSurvivesSIGKILLAtAnyMoment$")
		cmd.Env = append(os.Environ(), "REPLICATION_KILL_DIR="+dir)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		var said uint64
		for first := true; lines.Scan(); first = false {
			said, err = strconv.ParseUint(strings.TrimPrefix(lines.Text(), "epoch "), 10, 64)
			must(t, err)
			if first {
				time.AfterFunc(time.Duration(rng.IntN(30_000))*time.Microsecond, func() { cmd.Process.Kill() })
			}
		}
		if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
			t.Fatalf("the process ended by itself: %v, %s", err, stderr.String())
		}

		d, err = OpenFile(filepath.Join(dir, "disk"))
		must(t, err)
		j, err := OpenJournalFiles(filepath.Join(dir, "journal"), 1<<20)
		must(t, err)
		epoch, failedOver, err := j.Recover(ctx, d)
		must(t, err)
		must(t, j.Close())
		if epoch != said && epoch != said+1 || failedOver {
			t.Fatalf("kill %d: recovered epoch %d, failover %v; the process had said %d", kill, epoch, failedOver, said)
		}
		for e := uint64(1); e <= epoch; e++ {
			blocks, fill := killScript(e)
			for _, b := range blocks {
				copy(start[b*BlockSize:], bytes.Repeat([]byte{fill}, BlockSize))
			}
		}
		wantBytes(t, fmt.Sprintf("kill %d: the disk of epoch %d", kill, epoch), read(t, d, 0, killSize), start, 0)
		checkpoints += epoch
	}
	must(t, d.Close())
	t.Logf("%d kills, %d checkpoints", kills, checkpoints)
}
