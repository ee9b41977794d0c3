package main

// diskName is the name of the disk: that of its export, which a secondary
// serves with a generation, and that in the events.
const diskName = "disk"

// status is what the command of that name returns. Sizes are in bytes.
type status struct {
	State   string `json:"state"`
	Epoch   uint64 `json:"epoch"`
	Missing *int64 `json:"missing,omitempty"` // on a primary: what the secondary does not have
	Active  *int64 `json:"active,omitempty"`  // on a secondary: what the overlays take
	Hidden  *int64 `json:"hidden,omitempty"`
	Error   string `json:"error,omitempty"`
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
