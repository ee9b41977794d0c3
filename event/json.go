package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// ErrNotEvent is returned by [Decode] for a JSON object that is not an event,
// such as the greeting or a reply on a QMP connection.
var ErrNotEvent = errors.New("event: not an event")

// stamp is QMP's time stamp. Both members are -1 if the time is unknown.
type stamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

type envelope struct {
	Timestamp stamp           `json:"timestamp"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data,omitempty"`
}

// MarshalJSON returns the QMP envelope: timestamp, event and data, in this
// order. Data is omitted when the event has no members.
func (r Record) MarshalJSON() ([]byte, error) {
	if r.Event == nil {
		return nil, errors.New("event: record without an event")
	}
	data, err := json.Marshal(r.Event)
	if err != nil {
		return nil, fmt.Errorf("event: %s: %w", r.Event.Name(), err)
	}
	env := envelope{Timestamp: stamp{-1, -1}, Event: r.Event.Name()}
	if !r.Time.IsZero() {
		env.Timestamp = stamp{r.Time.Unix(), int64(r.Time.Nanosecond() / 1000)}
	}
	if !bytes.Equal(data, []byte("{}")) && !bytes.Equal(data, []byte("null")) {
		env.Data = data
	}
	return json.Marshal(env)
}

// UnmarshalJSON is [Decode].
func (r *Record) UnmarshalJSON(line []byte) error {
	d, err := Decode(line)
	if err == nil {
		*r = d
	}
	return err
}

// decoders has an entry for each type of event of this package.
var decoders = map[string]func(json.RawMessage) (Event, error){
	COLOExit{}.Name():         decode[COLOExit],
	Stop{}.Name():             decode[Stop],
	Resume{}.Name():           decode[Resume],
	Migration{}.Name():        decode[Migration],
	MigrationPass{}.Name():    decode[MigrationPass],
	CheckpointStart{}.Name():  decode[CheckpointStart],
	CheckpointCommit{}.Name(): decode[CheckpointCommit],
	FailoverDone{}.Name():     decode[FailoverDone],

	Arbitration{}.Name():       decode[Arbitration],
	HeartbeatLost{}.Name():     decode[HeartbeatLost],
	ProtectionRefused{}.Name(): decode[ProtectionRefused],
	ProtectionEnded{}.Name():   decode[ProtectionEnded],
	GuestTorn{}.Name():         decode[GuestTorn],
	OutputStalled{}.Name():     decode[OutputStalled],
	Throttled{}.Name():         decode[Throttled],

	DiskBroken{}.Name():          decode[DiskBroken],
	DiskSyncProgress{}.Name():    decode[DiskSyncProgress],
	DiskSynchronised{}.Name():    decode[DiskSynchronised],
	DiskResynchronised{}.Name():  decode[DiskResynchronised],
	DiskOverlayHalfFull{}.Name(): decode[DiskOverlayHalfFull],
}

func decode[T Event](data json.RawMessage) (Event, error) {
	var e T
	if len(data) == 0 {
		return e, nil
	}
	err := json.Unmarshal(data, &e)
	return e, err
}

// Decode reads one event as QMP prints it: a JSON object, with or without a
// line end. An event that this package has no type for is an [Unknown];
// members that its type does not have are ignored. An object that is no event
// gives [ErrNotEvent], a word that is in none of our enumerations an
// [*EnumError], anything else the error of encoding/json.
func Decode(line []byte) (Record, error) {
	var env struct {
		Timestamp *stamp          `json:"timestamp"`
		Event     *string         `json:"event"`
		Data      json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(line, &env); err != nil {
		return Record{}, fmt.Errorf("event: %w", err)
	}
	if env.Event == nil || *env.Event == "" {
		return Record{}, ErrNotEvent
	}
	var r Record
	if t := env.Timestamp; t != nil && t.Seconds >= 0 && t.Microseconds >= 0 {
		r.Time = time.Unix(t.Seconds, t.Microseconds%1e6*1000)
	}
	if bytes.Equal(env.Data, []byte("null")) {
		env.Data = nil
	}
	dec, ok := decoders[*env.Event]
	if !ok {
		r.Event = Unknown{Event: *env.Event, Data: env.Data}
		return r, nil
	}
	e, err := dec(env.Data)
	if err != nil {
		return Record{}, fmt.Errorf("event: %s: %w", *env.Event, err)
	}
	r.Event = e
	return r, nil
}
