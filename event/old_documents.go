package event

import (
	"encoding/json"
	"maps"
)

// The first documents of COLO show some events in another form than QEMU prints today.
// modern turns the data of an event from the old form into the present one, so that one
// type fits both; data in the present form stays as it is.
func modern(name string, data json.RawMessage) json.RawMessage {
	change, ok := changes[name]
	if !ok {
		return data
	}
	var m map[string]json.RawMessage
	if json.Unmarshal(data, &m) != nil || m == nil || !change(m) {
		return data
	}
	changed, err := json.Marshal(m)
	if err != nil {
		return data
	}
	return changed
}

// changes has, for each event with an old form, a function that changes its members into
// the present form and reports whether there was something to change.
var changes = map[string]func(map[string]json.RawMessage) bool{
	"ACPI_DEVICE_OST": func(m map[string]json.RawMessage) bool {
		if m["info"] != nil || m["slot"] == nil {
			return false
		}
		return inside(m, "info", "device", "slot", "slot-type", "source", "status")
	},
	"QUORUM_FAILURE":    sectorCount,
	"QUORUM_REPORT_BAD": sectorCount,
	"SPICE_INITIALIZED": func(m map[string]json.RawMessage) bool {
		return m["auth"] != nil && inside(m, "server", "auth")
	},
}

func sectorCount(m map[string]json.RawMessage) bool {
	n, old := m["sector-count"]
	if _, ok := m["sectors-count"]; ok || !old {
		return false
	}
	m["sectors-count"] = n
	delete(m, "sector-count")
	return true
}

// inside moves members into an object beside them, but for those that it has
// already.
func inside(m map[string]json.RawMessage, object string, names ...string) bool {
	var in map[string]json.RawMessage
	if at, ok := m[object]; ok && json.Unmarshal(at, &in) != nil {
		return false
	}
	if in == nil {
		in = make(map[string]json.RawMessage)
	}
	out := maps.Clone(m)
	for _, name := range names {
		if _, taken := in[name]; m[name] != nil && !taken {
			in[name] = m[name]
			delete(out, name)
		}
	}
	text, err := json.Marshal(in)
	if err != nil || len(out) == len(m) {
		return false
	}
	clear(m)
	maps.Copy(m, out)
	m[object] = text
	return true
}

// shutdownJSON returns the data of RESET and SHUTDOWN, which had none at first.
func shutdownJSON(guest bool, reason ShutdownCause) ([]byte, error) {
	if !guest && reason == "" {
		return []byte("{}"), nil
	}
	return json.Marshal(struct {
		Guest  bool          `json:"guest"`
		Reason ShutdownCause `json:"reason,omitempty"`
	}{guest, reason})
}
