package program

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/failover"
)

// MaxLine bounds a request and an answer, in bytes, without the end of the line.
const MaxLine = 4*failover.MaxRecord + 4096

// maxText bounds the text of an error that is taken from a program.
const maxText = 512

// What is asked for.
const (
	doLoad    = "load"
	doSwap    = "swap"
	doChanged = "changed"
	doForget  = "forget"
)

// request is a line from the host.
type request struct {
	ID   uint64 `json:"id"`
	Do   string `json:"do"`
	Old  *state `json:"old,omitempty"`  // of swap: the record that is to be replaced
	Next *state `json:"next,omitempty"` // of swap: the record that takes its place
	Seen *state `json:"seen,omitempty"` // of changed: the record that is known already
	Of   uint64 `json:"of,omitempty"`   // of forget: the ID of the request that is given up
}

// answer is a line from the program.
type answer struct {
	ID      uint64 `json:"id"`
	Record  *state `json:"record,omitempty"`
	Swapped bool   `json:"swapped,omitempty"`
	Error   string `json:"error,omitempty"`
}

// state is a record as it is sent.
type state failover.Record

// sent returns how a record is sent: the zero Record is left out.
func sent(r failover.Record) *state {
	if r == (failover.Record{}) {
		return nil
	}
	return (*state)(&r)
}

// record returns what was sent.
func (s *state) record() failover.Record {
	if s == nil {
		return failover.Record{}
	}
	return failover.Record(*s)
}

// MarshalJSON implements json.Marshaler.
func (s *state) MarshalJSON() ([]byte, error) {
	return bytes.TrimSuffix(failover.Record(*s).Encode(), []byte("\n")), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *state) UnmarshalJSON(b []byte) error {
	r, err := failover.DecodeRecord(b)
	*s = state(r)
	return err
}

// errLine says that a line is none of the protocol.
var errLine = errors.New("program: malformed line")

// decode reads a line into a request or an answer.
func decode(line []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", errLine, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: more after it", errLine)
	}
	return nil
}

// encode returns the line of a request or an answer.
func encode(what any) []byte {
	b, err := json.Marshal(what)
	if err != nil {
		panic(err) // there is nothing in it that could not be encoded
	}
	return append(b, '\n')
}
