package linuxguest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/internal/linuxguest/job"
)

// A Client is a client of the guest on two connections, and judges all that arrives.
// It knows nothing of how the guest is protected; Stop tells it that the guest may end.
type Client struct {
	reports, chunks net.Conn

	mu     sync.Mutex
	state  Progress
	begun  bool          // there was a record
	sum    *job.Checksum // at the pass of the last record
	err    error
	stops  bool            // the guest was told to stop
	quiet  time.Duration   // the longest silence since Watch
	broken time.Time       // when it ended
	heard  time.Time       // when the last byte came
	watch  time.Time       // when Watch was called
	delays []time.Duration // from asking for a chunk to having all of it
}

// Progress has what a Client has seen so far.
type Progress struct {
	Record job.Record // the last record that came
	Chunks uint64     // that were right
}

// NewClient returns a Client on connections to the guest's two ports.
func NewClient(reports, chunks net.Conn) *Client {
	return &Client{reports: reports, chunks: chunks, sum: job.NewChecksum(), heard: time.Now()}
}

// ErrWrong means that the guest has sent something that a right guest would not.
var ErrWrong = errors.New("the guest is wrong")

// Run reads until the guest has sent its last record, something is wrong, a
// connection ends, or ctx ends. It closes the connections.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(ctx, func() { c.reports.Close(); c.chunks.Close() })
	defer stop()
	var chunks sync.WaitGroup
	chunks.Go(func() {
		if err := c.askChunks(); err != nil {
			cancel(fmt.Errorf("chunks: %w", err))
		}
	})
	err := c.readReports()
	cancel(err)
	chunks.Wait()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		err = cause
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	return err
}

// Stop tells the guest to end its work.
func (c *Client) Stop() error {
	c.mu.Lock()
	c.stops = true
	c.mu.Unlock()
	_, err := io.WriteString(c.reports, "stop\n")
	return err
}

// Progress returns what has been seen so far, and the error that ended Run.
func (c *Client) Progress() (Progress, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state, c.err
}

// Watch begins to look for the longest silence.
func (c *Client) Watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watch = time.Now()
	c.broken, c.quiet = time.Time{}, 0
}

// Silence returns the longest time without a byte that has ended since Watch,
// and how long after Watch it ended. Both are zero if nothing has come.
//
// If a machine is killed at Watch, that end is the first byte from the other one:
// what was on its way at that moment comes at once.
func (c *Client) Silence() (ended, longest time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.quiet > 0 {
		ended = c.broken.Sub(c.watch)
	}
	return ended, c.quiet
}

// Delays returns how long each chunk has taken, from the request to its end.
func (c *Client) Delays() []time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]time.Duration(nil), c.delays...)
}

// hear records that a byte has arrived.
func (c *Client) hear() {
	now := time.Now()
	if d := now.Sub(c.heard); !c.watch.IsZero() && d > c.quiet {
		c.quiet, c.broken = d, now
	}
	c.heard = now
}

func (c *Client) readReports() error {
	for r := bufio.NewReader(c.reports); ; {
		line, err := r.ReadBytes('\n')
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		var rec job.Record
		if err := rec.UnmarshalText(line); err != nil {
			return fmt.Errorf("%w: %w", ErrWrong, err)
		}
		if err := c.take(rec); err != nil {
			return err
		}
		if rec.Last {
			return nil
		}
	}
}

// take judges a record.
func (c *Client) take(r job.Record) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hear()
	last := c.state.Record
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("%w: record %d: %s", ErrWrong, r.Seq, fmt.Sprintf(format, args...))
	}
	switch {
	case !c.begun && r.Seq != 0:
		return wrong("is the first")
	case c.begun && r.Seq != last.Seq+1:
		return wrong("comes after record %d", last.Seq)
	case r.Counter < last.Counter:
		return wrong("the counter went back from %d to %d", last.Counter, r.Counter)
	case r.Synced < last.Synced:
		return wrong("%d entries are on disk, and %d were", r.Synced, last.Synced)
	case r.Pass < last.Pass:
		return wrong("the checksum went back from pass %d to %d", last.Pass, r.Pass)
	case r.Chunks < last.Chunks:
		return wrong("%d chunks were sent, and %d were", r.Chunks, last.Chunks)
	case r.Last && !c.stops:
		return wrong("is the last one, and nobody has asked for that")
	}
	for c.sum.Pass < r.Pass {
		c.sum.Next()
	}
	if r.Pass > 0 && (r.Integer != c.sum.Integer || r.Double != c.sum.Double) {
		return wrong("pass %d: integer %016x double %016x, want %016x and %016x", r.Pass, r.Integer, r.Double, c.sum.Integer, c.sum.Double)
	}
	c.state.Record, c.begun = r, true
	return nil
}

// askChunks asks for one chunk after the other, until the connection ends in
// good order, which it may when the guest was told to stop.
func (c *Client) askChunks() error {
	var want []byte
	got := make([]byte, job.ChunkSize)
	for n := uint64(0); ; n++ {
		asked := time.Now()
		if _, err := c.chunks.Write(binary.BigEndian.AppendUint64(nil, n)); err != nil {
			return c.unlessStopped(err)
		}
		if _, err := io.ReadFull(c.chunks, got); err != nil {
			return c.unlessStopped(err)
		}
		want = job.AppendChunk(want[:0], n)
		if string(got) != string(want) {
			return fmt.Errorf("%w: chunk %d is %q", ErrWrong, n, got)
		}
		c.mu.Lock()
		c.hear()
		c.state.Chunks = n + 1
		c.delays = append(c.delays, time.Since(asked))
		c.mu.Unlock()
		time.Sleep(chunkEvery)
	}
}

// chunkEvery is the pause between two requests.
const chunkEvery = 50 * time.Millisecond

func (c *Client) unlessStopped(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stops {
		return nil
	}
	return err
}
