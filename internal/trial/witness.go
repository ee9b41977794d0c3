package trial

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/gocolo/lockstep/colo"
)

// Claim is what a side asks the witness, one JSON line over a connection of
// its own.
type Claim struct {
	Generation uint64 `json:"generation"` // of the pair; it ends with the first grant
	Side       string `json:"side"`
	Epoch      uint64 `json:"epoch"` // the last checkpoint that the side knows to be committed
	Cause      string `json:"cause"` // why it lost the other
}

// Answer is the witness's line in return.
type Answer struct {
	Granted bool   `json:"granted"`
	Reason  string `json:"reason,omitempty"`
}

// A witness decides which of the two sides goes on when they have lost each
// other. Within one generation it says yes to one side, always the same. It
// need not know whether the other is dead: that one is refused, or never asks.
type witness struct {
	log func(Claim, Answer) // told of every answer before it is given

	mu         sync.Mutex
	generation uint64
	winner     string // of this generation; "" while the pair is whole
}

// decide gives the generation to side, as a claim would, and reports whether
// side has it.
func (w *witness) decide(c Claim) Answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	a := Answer{}
	switch {
	case c.Generation != w.generation:
		a.Reason = fmt.Sprintf("generation %d is over", c.Generation)
	case w.winner != "" && w.winner != c.Side:
		a.Reason = fmt.Sprintf("the %s goes on", w.winner)
	default:
		w.winner = c.Side
		a.Granted = true
	}
	if w.log != nil {
		w.log(c, a)
	}
	return a
}

// serve answers claims until the listener is closed, and returns when all
// answers are given.
func (w *witness) serve(l net.Listener) {
	var group sync.WaitGroup
	defer group.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		group.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(witnessTimeout))
			var c Claim
			if err := json.NewDecoder(conn).Decode(&c); err != nil {
				return // whoever cannot ask is not answered
			}
			json.NewEncoder(conn).Encode(w.decide(c))
		})
	}
}

const witnessTimeout = 5 * time.Second

var errRefused = fmt.Errorf("the witness refused: %w", colo.ErrRefused)

// AskWitness is a side's colo.Arbiter. A side that gets no answer asks again.
func AskWitness(address, side string, generation uint64) colo.ArbiterFunc {
	return func(ctx context.Context, c colo.Claim) error {
		ctx, cancel := context.WithTimeout(ctx, witnessTimeout)
		defer cancel()
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer conn.Close()
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		defer stop()
		ask := Claim{Generation: generation, Side: side, Epoch: c.Epoch}
		if c.Cause != nil {
			ask.Cause = c.Cause.Error()
		}
		if err := json.NewEncoder(conn).Encode(ask); err != nil {
			return err
		}
		var a Answer
		if err := json.NewDecoder(bufio.NewReader(conn)).Decode(&a); err != nil {
			return err
		}
		if !a.Granted {
			return fmt.Errorf("%w: %s", errRefused, a.Reason)
		}
		return nil
	}
}
