package trial

import (
	"context"
	"errors"

	"github.com/gocolo/lockstep/failover"
)

// Claim is a request of a host to the arbiter.
type Claim struct {
	Generation uint64 `json:"generation"` // the one that the host has held or followed; 0: none
	Side       string `json:"side"`
	Note       string `json:"note,omitempty"`
}

// Answer is the answer of the arbiter to a Claim.
type Answer struct {
	Granted    bool   `json:"granted"`
	Generation uint64 `json:"generation,omitempty"` // that the host has from now on
	Reason     string `json:"reason,omitempty"`
}

// Claimed is a claim that was answered.
type Claimed struct {
	Claim  Claim  `json:"claim"`
	Answer Answer `json:"answer"`
}

// Heard returns an arbiter that calls tell with the answer to each claim, before the
// host gets the answer. It tells neither renewals nor claims that could not be asked.
func Heard(a failover.Arbiter, tell func(Claimed)) failover.Arbiter { return &heard{a, tell} }

type heard struct {
	failover.Arbiter
	tell func(Claimed)
}

// HeedsFrom implements failover.HandoverArbiter.
func (h *heard) HeedsFrom() bool { return failover.HeedsFrom(h.Arbiter) }

func (h *heard) Acquire(ctx context.Context, c failover.Claim) (failover.Grant, error) {
	g, err := h.Arbiter.Acquire(ctx, c)
	said := Claimed{Claim{Generation: c.After, Side: c.Holder, Note: c.Note}, Answer{Granted: err == nil, Generation: g.Generation}}
	if err != nil {
		said.Answer.Generation, said.Answer.Reason = 0, err.Error()
	}
	if err == nil || errors.Is(err, failover.ErrRefused) {
		h.tell(said)
	}
	return g, err
}
