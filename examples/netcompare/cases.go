package main

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
)

// A testCase is a sequence of packets and what QEMU 7.2 did with them.
type testCase struct {
	Name        string   `json:"name"`
	Recommended []string `json:"recommended"` // what is right for each step, where QEMU is not
	Options     struct {
		MaxQueue int `json:"max_queue_size"`
	} `json:"options"`
	Steps []testStep `json:"steps"`
}

// testStep is a step of a case, as the tests of packages compare and filter have them in
// JSON.
type testStep struct {
	Op string `json:"op"`

	// For the comparison.
	ID      string   `json:"id"`
	Hex     string   `json:"hex"`
	VNetHdr int      `json:"vnet_hdr_len"`
	Notify  int      `json:"notify"`
	Out     released `json:"out"`

	// For the rewriter.
	In string `json:"in"`

	// What ought to happen instead, as an object with out and notify.
	Recommended json.RawMessage `json:"recommended"`
}

// expected returns what ought to leave after the step, and whether a checkpoint
// ought to be asked for.
func (s *testStep) expected(strict bool) (out released, notify bool, err error) {
	if strict || len(s.Recommended) == 0 {
		return s.Out, s.Notify > 0, nil
	}
	r := struct {
		Out    released `json:"out"`
		Notify int      `json:"notify"`
	}{}
	if err := json.Unmarshal(s.Recommended, &r); err != nil {
		return nil, false, fmt.Errorf("the recommendation %s is for people", s.Recommended)
	}
	return r.Out, r.Notify > 0, nil
}

// released is the names of packets, or for the rewriter the packet itself.
type released []string

func (r *released) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*r = released{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(r))
}

// runCases runs a file. Each case is an expectation and a result for each step.
func runCases(out io.Writer, name string, strict bool, do func(c *testCase, strict bool) (got, want []string, err error)) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var file struct {
		Cases []testCase `json:"cases"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(file.Cases) == 0 {
		return fmt.Errorf("%s has no cases", name)
	}
	failed := 0
	for i := range file.Cases {
		c := &file.Cases[i]
		got, want, err := do(c, strict)
		if err == nil && len(got) == 0 {
			err = errors.New("it has no steps")
		}
		verdict := "ok"
		if err != nil {
			verdict = err.Error()
		}
		for j := range got {
			if got[j] != want[j] {
				verdict = fmt.Sprintf("step %d: got %s, want %s", j+1, got[j], want[j])
				break
			}
		}
		if verdict != "ok" {
			failed++
		}
		fmt.Fprintf(out, "%s: %s\n", c.Name, verdict)
	}
	fmt.Fprintf(out, "%d passed, %d failed\n", len(file.Cases)-failed, failed)
	if failed > 0 {
		return errFailed
	}
	return nil
}

// expected returns what is recommended for a case, step by step. It is nil if what
// QEMU did is right.
func (c *testCase) expected(strict bool) ([]string, error) {
	if strict || c.Recommended == nil {
		return nil, nil
	}
	if len(c.Recommended) != len(c.Steps) {
		return nil, fmt.Errorf("%d recommendations for %d steps", len(c.Recommended), len(c.Steps))
	}
	return c.Recommended, nil
}

// compareCase runs a case through an engine. A step is the names of the packets
// that left, and ! if a checkpoint was asked for; - is nothing.
func compareCase(c *testCase, strict bool) (got, want []string, err error) {
	e := compare.NewEngine(compare.Config{Strict: strict, MaxQueue: c.Options.MaxQueue})
	if want, err = c.expected(strict); err != nil {
		return nil, nil, err
	}
	observed := want == nil
	names := map[string]string{}
	now, epoch := time.Unix(0, 0), uint64(0)
	for _, s := range c.Steps {
		data, err := hex.DecodeString(s.Hex)
		if err != nil {
			return nil, nil, err
		}
		f := compare.Frame{Data: data, VNetHdr: s.VNetHdr}
		var r compare.Result
		switch s.Op {
		case "primary":
			names[string(data)] = s.ID
			r = e.Primary(f, now)
		case "secondary":
			r = e.Secondary(f, now)
		case "checkpoint":
			if err := e.Mark(epoch); err != nil {
				return nil, nil, err
			}
			if r, err = e.Received(epoch); err != nil {
				return nil, nil, err
			}
			if err := e.Loaded(epoch); err != nil {
				return nil, nil, err
			}
			epoch++
		default:
			return nil, nil, fmt.Errorf("op %q is none of a comparison's (-rewriter takes a rewriter's)", s.Op)
		}
		var left []string
		for _, f := range r.Release {
			left = append(left, names[string(f.Data)])
		}
		now = now.Add(time.Millisecond)
		got = append(got, outcome(left, r.Diverged))
		if observed {
			out, notify, err := s.expected(strict)
			if err != nil {
				return nil, nil, err
			}
			want = append(want, outcome(out, notify))
		}
	}
	return got, want, nil
}

func outcome(left []string, notify bool) string {
	if notify {
		left = append(left[:len(left):len(left)], "!")
	}
	if len(left) == 0 {
		return "-"
	}
	return strings.Join(left, " ")
}

// rewriterCase runs a case through a rewriter. A step is the packet that leaves,
// in hex, or, as a recommendation, its sequence and acknowledgment numbers.
func rewriterCase(c *testCase, strict bool) (got, want []string, err error) {
	r := filter.NewRewriter(filter.RewriterConfig{Strict: strict})
	if want, err = c.expected(strict); err != nil {
		return nil, nil, err
	}
	observed := want == nil
	say := func(frame []byte) string {
		if observed {
			return hex.EncodeToString(frame)
		}
		return numbers(frame)
	}
	for _, s := range c.Steps {
		frame, err := hex.DecodeString(s.In)
		if err != nil {
			return nil, nil, err
		}
		g := "-"
		switch s.Op {
		case "checkpoint":
			err = r.Commit(0)
		case "to_guest":
			if g = "held"; r.Inbound(frame, 0) {
				g = say(frame)
			}
		case "from_guest":
			early := r.Outbound(frame, 0)
			if g = say(frame); early != nil {
				g += " " + say(early)
			}
		default:
			err = fmt.Errorf("op %q is none of a rewriter's (-vectors takes a comparison's)", s.Op)
		}
		if err != nil {
			return nil, nil, err
		}
		got = append(got, g)
		if observed {
			out, _, err := s.expected(strict)
			if err != nil {
				return nil, nil, err
			}
			want = append(want, outcome(out, false))
		}
	}
	return got, want, nil
}

// numbers returns the sequence and acknowledgment numbers of a TCP segment
// without IP options or tags, as "1001/501".
func numbers(frame []byte) string {
	if len(frame) < 46 {
		return hex.EncodeToString(frame)
	}
	be := func(i int) uint32 {
		return uint32(frame[i])<<24 | uint32(frame[i+1])<<16 | uint32(frame[i+2])<<8 | uint32(frame[i+3])
	}
	return fmt.Sprintf("%d/%d", be(38), be(42))
}
