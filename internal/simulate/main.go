// Command simulate runs seeds of the simulator in colo/protect on all cores, and prints
// how many it ran a second, and a second of CPU. It ends at the first seed that fails.
//
//	go run ./internal/simulate -seeds 10000
//	go run ./internal/simulate -seeds 1000 -seed 4 -step 8
//	go run ./internal/simulate -seeds 500 -counts
//	go run ./internal/simulate -seeds 1 -seed 3727 -exact -trace /tmp/trace
//
// With -exact a seed is the same to the last bit whenever it runs, as the comment of
// replay.WriteOverlay says, and a digest of all histories is printed, by which two machines can be
// compared; the first use builds the Go runtime anew. Without it the order of what happens at one
// instant differs from run to run, so that many runs of the same seeds see more. What is found without -exact may need some runs to be found again.
package main

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/replay"
)

func main() {
	seed := flag.Uint64("seed", 1, "the first seed")
	seeds := flag.Uint64("seeds", 2000, "how many")
	cores := flag.Uint64("cores", uint64(runtime.NumCPU()), "how many at a time")
	exact := flag.Bool("exact", false, "the same to the last bit each time")
	step := flag.Uint64("step", 1, "from a seed to the next: of 8, one kind of world")
	counts := flag.Bool("counts", false, "print what a seed does on average: messages, checkpoints, frames")
	trace := flag.String("trace", "", "write everything that happens to that file, one seed after the other")
	flag.Parse()
	if err := run(*seed, *seeds, *step, max(1, *cores), *exact, *counts, *trace); err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

func run(seed, seeds, step, cores uint64, exact, counts bool, trace string) error {
	dir, err := os.MkdirTemp("", "simulate")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "protect.test")
	build := []string{"test", "-c", "-o", program}
	// Without -exact any toolchain will do: the clock of the day is the bubble's then.
	switch overlay, err := replay.WriteOverlay(dir, exact); {
	case err == nil:
		build = append(build, "-overlay", overlay, "-tags", replay.Tag)
	case exact:
		return err
	}
	if out, err := exec.Command("go", append(build, "github.com/gocolo/lockstep/colo/protect")...).CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	if trace != "" {
		cores = 1
		if trace, err = filepath.Abs(trace); err != nil {
			return err
		}
	}
	cores = min(cores, max(seeds, 1))
	begin := time.Now()
	var mu sync.Mutex
	var failed error
	var used time.Duration     // of CPU
	var histories bytes.Buffer // a line for each seed
	var group sync.WaitGroup
	for i := range cores {
		from, to := i*seeds/cores, (i+1)*seeds/cores
		group.Go(func() {
			for from < to { // in pieces: the collector is off in each
				n := min(to-from, 500)
				mu.Lock()
				stop := failed != nil
				mu.Unlock()
				if stop {
					return
				}
				args := []string{"-test.run=^TestSimulatedFaults$", "-test.timeout=10m", fmt.Sprint("-seed=", seed+from*step), fmt.Sprint("-seeds=", n), fmt.Sprint("-seed.step=", step)}
				if exact {
					args = append(args, "-digests")
				}
				if exact || counts {
					args = append(args, "-test.v")
				}
				if trace != "" {
					args = append(args, "-trace="+trace)
				}
				cmd := exec.Command(program, args...)
				// Seeds make many goroutines, whose stacks need not grow in small steps,
				// and on one P nobody waits to run but them.
				cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=adaptivestackstart=1,asyncpreemptoff=1")
				out, err := cmd.CombinedOutput()
				mu.Lock()
				if s := cmd.ProcessState; s != nil {
					used += s.UserTime() + s.SystemTime()
				}
				if counts {
					printLines(os.Stdout, out, "a seed takes")
				}
				if err != nil && failed == nil {
					failed = fmt.Errorf("%w\n%s", err, out)
				} else if err == nil && exact {
					printLines(&histories, out, "seed ", " events")
				}
				mu.Unlock()
				from += n
			}
		})
	}
	group.Wait()
	if failed != nil {
		return failed
	}
	if exact {
		if seeds <= 100 {
			io.Copy(os.Stdout, bytes.NewReader(histories.Bytes()))
		}
		fmt.Println(digest(histories.String()))
	}
	per := float64(seeds) / time.Since(begin).Seconds()
	fmt.Printf("%d seeds, %.0f a second on %d cores, %.0f on each; %.0f a second of CPU\n", seeds, per, cores, per/float64(cores), float64(seeds)/max(used.Seconds(), 0.001))
	return nil
}

// digest returns one hash of the histories of all seeds, which is the same in whatever order and on
// whatever machine they ran.
func digest(histories string) string {
	lines := slices.Sorted(strings.Lines(histories))
	return fmt.Sprintf("digest %x of %d histories", sha256.Sum256([]byte(strings.Join(lines, ""))), len(lines))
}

// printLines prints the lines of a test's output that have all of the words, each from
// the first word on: these are what the seeds report.
func printLines(w io.Writer, out []byte, words ...string) {
	for b := range bytes.Lines(out) {
		line, has := string(b), true
		for _, word := range words {
			has = has && strings.Contains(line, word)
		}
		if has {
			fmt.Fprint(w, line[strings.Index(line, words[0]):])
		}
	}
}
