package protect

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gocolo/lockstep/event"
)

// lines is a log that may be written by several goroutines.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSpace(l.b.String()), "\n")
}

// What a job logs says of which guest, side, generation and checkpoint it is, and
// what happens to a checkpoint is for those who debug.
func TestEveryRecordOfAJobsLogSaysWhoseItIs(t *testing.T) {
	bubble(t, "", func(t *testing.T, w *world) {
		var log lines
		all := func(c *Config) {
			c.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		}
		b, a := w.boot("b", false, nil), w.boot("a", true, all)
		a.is(Protected)
		time.Sleep(300 * time.Millisecond) // all that belongs to a session has begun
		b.halt()
		a.halt() // its log is whole
		states, commits, beats := 0, 0, 0
		for _, l := range log.all() {
			for _, want := range []string{" guest=guest ", " generation=", " side=", " checkpoint="} {
				if !strings.Contains(l, want) {
					t.Errorf("%q is not in: %s", want, l)
				}
			}
			if strings.Contains(l, "level=INFO msg=protect ") && strings.Contains(l, " generation=1 ") && strings.Contains(l, "state=protected") {
				states++
			}
			if strings.Contains(l, "level=DEBUG msg=CHECKPOINT_COMMIT guest=guest generation=1 side=primary") {
				commits++
			}
			if strings.Contains(l, `level=DEBUG msg="a heartbeat begins" guest=guest generation=1 side=primary checkpoint=`) {
				beats++
			}
		}
		if states != 1 || commits == 0 || beats != 1 {
			t.Errorf("protected %d times, %d checkpoints, %d heartbeats:\n%s", states, commits, beats, strings.Join(log.all(), "\n"))
		}
	})
}

func TestWhatHappensToADiskIsLoggedOnce(t *testing.T) {
	var log lines
	bus := new(event.Bus)
	j := &Job{cfg: Config{Name: "db1", Events: bus, Logger: slog.New(slog.NewTextHandler(&log, nil)), Disks: []*Disk{{cfg: DiskConfig{Name: "root"}}}}, generation: 4}
	cancel := j.logDisks()
	bus.Publish(event.DiskBroken{Mode: event.ModePrimary, Disk: "root", Operation: "write", Error: "no space"})
	bus.Publish(event.DiskBroken{Mode: event.ModePrimary, Disk: "another guest's"})
	bus.Guest("db2").Publish(event.DiskBroken{Mode: event.ModePrimary, Disk: "root"})
	cancel()
	bus.Publish(event.DiskBroken{Mode: event.ModePrimary, Disk: "root"})
	if got := log.all(); len(got) != 1 || !strings.Contains(got[0], `level=INFO msg=DISK_BROKEN guest=db1 generation=4 side=primary disk=root operation=write`) {
		t.Errorf("%q", got)
	}
}

// A peer that is lost, with all its connections, is one warning on the host that goes on, whichever
// of the two that is, and no error: its guest runs.
func TestALostPeerIsOneWarning(t *testing.T) {
	t.Parallel()
	for _, lost := range []string{"a", "b"} {
		for _, silent := range []bool{false, true} {
			withDisk(t, fmt.Sprintf("%s, silent %v", lost, silent), func(t *testing.T, w *world) {
				logs := map[string]*lines{"a": {}, "b": {}}
				warns := func(c *Config) {
					c.Logger = slog.New(slog.NewTextHandler(logs[c.Host], &slog.HandlerOptions{Level: slog.LevelWarn}))
				}
				hosts := map[string]*host{"b": w.boot("b", false, warns), "a": w.boot("a", true, warns)}
				hosts["a"].is(Protected)
				hosts["b"].is(Following)
				time.Sleep(100 * time.Millisecond) // the guest writes
				gone, stays := hosts[lost], hosts[w.other(lost)]
				gone.kill(silent)
				gone.bury()
				stays.is(Alone)
				stays.halt()
				if got := logs[stays.name].all(); len(got) != 1 || !strings.Contains(got[0], "level=WARN msg=COLO_EXIT") {
					t.Errorf("%s says\n%s", stays.name, strings.Join(got, "\n"))
				}
			})
		}
	}
}
