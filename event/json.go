package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
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
	Guest     string          `json:"guest,omitempty"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data,omitempty"`
}

// MarshalJSON returns the QMP envelope: timestamp, guest, event and data, in
// this order. Guest, which QEMU does not have, is omitted when it is empty, data
// when the event has no members.
func (r Record) MarshalJSON() ([]byte, error) {
	if r.Event == nil {
		return nil, errors.New("event: record without an event")
	}
	data, err := json.Marshal(r.Event)
	if err != nil {
		return nil, fmt.Errorf("event: %s: %w", r.Event.Name(), err)
	}
	env := envelope{Timestamp: stamp{-1, -1}, Guest: r.Guest, Event: r.Event.Name()}
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
	JobStatusChange{}.Name():  decode[JobStatusChange],

	Arbitration{}.Name():       decode[Arbitration],
	HeartbeatLost{}.Name():     decode[HeartbeatLost],
	ProtectionRefused{}.Name(): decode[ProtectionRefused],
	ProtectionEnded{}.Name():   decode[ProtectionEnded],
	GuestTorn{}.Name():         decode[GuestTorn],
	OutputStalled{}.Name():     decode[OutputStalled],
	Throttled{}.Name():         decode[Throttled],

	DiskBroken{}.Name():          decode[DiskBroken],
	DiskFailed{}.Name():          decode[DiskFailed],
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
// gives [ErrNotEvent], a text that can be no word of an enumeration an
// [*EnumError], anything else the error of encoding/json. A word of an
// enumeration that is not known here, of a newer QEMU say, is kept. [Decoder]
// knows a host's own types too.
func Decode(line []byte) (Record, error) { return new(Decoder).Decode(line) }
