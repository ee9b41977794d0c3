package event

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"time"
)

// A Decoder reads events as QMP prints them, those of this package and those of
// the host that were registered with [Register]. The zero Decoder knows those of
// this package. It may be used from any number of goroutines, but not while a
// type is registered.
type Decoder struct {
	types map[string]decodeFunc // nil: the types of this package only
}

// Register makes a Decoder know an event type of the host, under the Name of its
// zero value. A type of the same name, also one of this package, is replaced.
func Register[T Event](d *Decoder) {
	if d.types == nil {
		d.types = maps.Clone(decoders)
	}
	var zero T
	d.types[zero.Name()] = decode[T]
}

// Decode does what the function [Decode] does, with the types that the Decoder knows.
func (d *Decoder) Decode(line []byte) (Record, error) {
	var env struct {
		Timestamp *stamp          `json:"timestamp"`
		Guest     string          `json:"guest"`
		Event     *string         `json:"event"`
		Data      json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(line, &env); err != nil {
		return Record{}, fmt.Errorf("event: %w", err)
	}
	if env.Event == nil || *env.Event == "" {
		return Record{}, ErrNotEvent
	}
	r := Record{Guest: env.Guest}
	if t := env.Timestamp; t != nil && t.Seconds >= 0 && t.Microseconds >= 0 {
		r.Time = time.Unix(t.Seconds, t.Microseconds%1e6*1000)
	}
	if bytes.Equal(env.Data, []byte("null")) {
		env.Data = nil
	}
	types := decoders
	if d.types != nil {
		types = d.types
	}
	dec, ok := types[*env.Event]
	if !ok {
		r.Event = Unknown{Event: *env.Event, Data: env.Data}
		return r, nil
	}
	e, other, err := dec(modern(*env.Event, env.Data))
	if err != nil {
		return Record{}, fmt.Errorf("event: %s: %w", *env.Event, err)
	}
	r.Event, r.Members = e, other
	return r, nil
}
