package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
)

// ErrNotEvent is returned by [Decode] for a JSON object that is not an event,
// such as the greeting or a reply on a QMP connection.
var ErrNotEvent = errors.New("event: not an event")

// stamp is QMP's time stamp. Both members are -1 if the time is unknown.
type stamp struct {
	Seconds      int64 `json:"seconds"`
	Microseconds int64 `json:"microseconds"`
}

// envelope is the JSON object of a Record.
type envelope struct {
	Timestamp stamp           `json:"timestamp"`
	Guest     string          `json:"guest,omitempty"`
	Event     string          `json:"event"`
	Data      json.RawMessage `json:"data,omitempty"`
}

// MarshalJSON returns the QMP envelope: timestamp, guest, event and data, in
// this order. Guest, which QEMU does not have, is omitted when it is empty, data
// when the event has no members. The data of QEMU's events has QEMU's order of
// members, and behind them the Members of the Record.
func (r Record) MarshalJSON() ([]byte, error) {
	if r.Event == nil {
		return nil, errors.New("event: record without an event")
	}
	data, err := json.Marshal(r.Event)
	if err != nil {
		return nil, fmt.Errorf("event: %s: %w", r.Event.Name(), err)
	}
	if r.Members != "" {
		var other map[string]json.RawMessage
		if err := json.Unmarshal([]byte(r.Members), &other); err != nil {
			return nil, fmt.Errorf("event: %s: members: %w", r.Event.Name(), err)
		}
		if data, err = merge(data, other); err != nil {
			return nil, fmt.Errorf("event: %s: %w", r.Event.Name(), err)
		}
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

// decodeFunc reads the data of one type of event, and returns what the type has
// no field for.
type decodeFunc = func(json.RawMessage) (Event, Members, error)

// Types returns the type of each event that this package has one for, by its
// name: a struct, whose fields with their json tags are the members of its data.
func Types() map[string]reflect.Type {
	all := make(map[string]reflect.Type, len(decoders))
	for name, dec := range decoders {
		if e, _, err := dec(nil); err == nil { // decoding no data gives no error
			all[name] = reflect.TypeOf(e)
		}
	}
	return all
}

// decoders has an entry for each type of event of this package.
var decoders = map[string]decodeFunc{
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
	DiskStalled{}.Name():         decode[DiskStalled],
	DiskSyncProgress{}.Name():    decode[DiskSyncProgress],
	DiskSynchronised{}.Name():    decode[DiskSynchronised],
	DiskResynchronised{}.Name():  decode[DiskResynchronised],
	DiskOverlayHalfFull{}.Name(): decode[DiskOverlayHalfFull],
	DiskOverlayFull{}.Name():     decode[DiskOverlayFull],
	DiskVerified{}.Name():        decode[DiskVerified],

	NetworkDiverged{}.Name():     decode[NetworkDiverged],
	NetworkFlowApart{}.Name():    decode[NetworkFlowApart],
	NetworkFlowTogether{}.Name(): decode[NetworkFlowTogether],

	Reset{}.Name():            decode[Reset],
	Shutdown{}.Name():         decode[Shutdown],
	Powerdown{}.Name():        decode[Powerdown],
	Suspend{}.Name():          decode[Suspend],
	SuspendDisk{}.Name():      decode[SuspendDisk],
	Wakeup{}.Name():           decode[Wakeup],
	Watchdog{}.Name():         decode[Watchdog],
	GuestPanicked{}.Name():    decode[GuestPanicked],
	GuestCrashloaded{}.Name(): decode[GuestCrashloaded],
	RTCChange{}.Name():        decode[RTCChange],
	BalloonChange{}.Name():    decode[BalloonChange],

	BlockImageCorrupted{}.Name(): decode[BlockImageCorrupted],
	BlockIOError{}.Name():        decode[BlockIOError],
	BlockJobCancelled{}.Name():   decode[BlockJobCancelled],
	BlockJobCompleted{}.Name():   decode[BlockJobCompleted],
	BlockJobError{}.Name():       decode[BlockJobError],
	BlockJobReady{}.Name():       decode[BlockJobReady],
	BlockJobPending{}.Name():     decode[BlockJobPending],
	JobStatusChange{}.Name():     decode[JobStatusChange],
	QuorumFailure{}.Name():       decode[QuorumFailure],
	QuorumReportBad{}.Name():     decode[QuorumReportBad],

	ACPIDeviceOST{}.Name():      decode[ACPIDeviceOST],
	DeviceDeleted{}.Name():      decode[DeviceDeleted],
	DeviceTrayMoved{}.Name():    decode[DeviceTrayMoved],
	NICRXFilterChanged{}.Name(): decode[NICRXFilterChanged],

	SPICEConnected{}.Name():    decode[SPICEConnected],
	SPICEInitialized{}.Name():  decode[SPICEInitialized],
	SPICEDisconnected{}.Name(): decode[SPICEDisconnected],
	VNCConnected{}.Name():      decode[VNCConnected],
	VNCInitialized{}.Name():    decode[VNCInitialized],
	VNCDisconnected{}.Name():   decode[VNCDisconnected],
}

func decode[T Event](data json.RawMessage) (Event, Members, error) {
	var e T
	if len(data) == 0 {
		return e, "", nil
	}
	if _, own := any(&e).(json.Unmarshaler); own {
		err := json.Unmarshal(data, &e)
		return e, "", err
	}
	data, other, err := split(data, reflect.TypeFor[T]())
	if err != nil {
		return e, "", err
	}
	err = json.Unmarshal(data, &e)
	return e, Members(other), err
}

// Decode reads one event as QMP prints it: a JSON object, with or without a
// line end. An event that this package has no type for is an [Unknown]; members
// that its type does not have are the Members of the Record. The form that the
// first documents show of an event is read as that of today. An object that is
// no event gives [ErrNotEvent], a text that can be no word of an enumeration an
// [*EnumError], anything else the error of encoding/json. A word of an
// enumeration that is not known here, of a newer QEMU say, is kept. [Decoder]
// knows a host's own types too.
func Decode(line []byte) (Record, error) { return new(Decoder).Decode(line) }
