package trial

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"github.com/gocolo/lockstep/internal/signals"
	"github.com/gocolo/lockstep/internal/tied"
)

// A process is one side, as the parent sees it.
type process struct {
	side   string
	cmd    *exec.Cmd
	in     io.WriteCloser
	stderr tail
}

// message comes from a process: a report, or the news that it has ended.
type message struct {
	side   string
	from   *process
	report Report          // without its event
	event  json.RawMessage // of the report, as it came; most are only passed on
	ended  bool
	err    error // of the end: nil for exit status 0
}

// start starts a side. Its reports, and at last its end, go to inbox from a
// goroutine in group.
func start(cfg SideConfig, inbox chan<- message, group *sync.WaitGroup) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{side: cfg.Side, cmd: exec.Command(self, SideArgument)}
	p.cmd.Stderr = &p.stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	release, err := tied.Start(p.cmd)
	if err != nil {
		return nil, err
	}
	group.Go(func() {
		r := bufio.NewReader(out)
		for {
			line, err := r.ReadBytes('\n')
			if err != nil {
				break // a line that was cut says nothing
			}
			var in struct {
				Report
				Event json.RawMessage `json:"event"`
			}
			if err := json.Unmarshal(line, &in); err != nil {
				p.stderr.Write(line) // a crash, most likely
				continue
			}
			inbox <- message{side: p.side, from: p, report: in.Report, event: in.Event}
		}
		err := p.cmd.Wait()
		release()
		inbox <- message{side: p.side, from: p, ended: true, err: err}
	})
	p.tell(cfg)
	return p, nil
}

// tell sends the process a line. A process that cannot take it has ended, and
// its end says why.
func (p *process) tell(v any) { json.NewEncoder(p.in).Encode(v) }

// kill sends SIGKILL.
func (p *process) kill() error { return p.cmd.Process.Kill() }

// pause sends SIGSTOP, and resume SIGCONT.
func (p *process) pause() error  { return p.cmd.Process.Signal(signals.Stop) }
func (p *process) resume() error { return p.cmd.Process.Signal(signals.Continue) }

// pid returns the process ID, to print it.
func (p *process) pid() int { return p.cmd.Process.Pid }

// failure says how a process ended that should not have.
func (p *process) failure(err error) error {
	said := p.stderr.String()
	if said != "" {
		said = "\n" + said
	}
	if err == nil {
		return fmt.Errorf("%s ended early%s", called(p.side), said)
	}
	return fmt.Errorf("%s failed: %w%s", called(p.side), err, said)
}

// called returns the name of a side, or a host, for use in a sentence.
func called(side string) string {
	if side == hostA || side == hostB {
		return "host " + side
	}
	return "the " + side
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 8 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(bytes.TrimSpace(t.b))
}
