package event

// QEMU's events of devices that guests plug, eject and configure.

// ACPISlotType is what a slot of [ACPIDeviceOST] takes. (QAPI enum
// ACPISlotType.)
type ACPISlotType string

// The types of slots.
const (
	ACPISlotDIMM ACPISlotType = "DIMM"
	ACPISlotCPU  ACPISlotType = "CPU"
)

// UnmarshalText accepts any word. What is no word is an [*EnumError].
func (t *ACPISlotType) UnmarshalText(text []byte) error { return word(t, text, "ACPISlotType") }

// ACPIDeviceOST says what the guest has made of a request to plug or unplug
// (_OST of the ACPI specification). The first documents show the members of
// Info without it around them. (QAPI event ACPI_DEVICE_OST.)
type ACPIDeviceOST struct {
	Info ACPIOSTInfo `json:"info"`
}

// Name returns "ACPI_DEVICE_OST".
func (ACPIDeviceOST) Name() string { return "ACPI_DEVICE_OST" }

// ACPIOSTInfo is the QAPI type of the same name.
type ACPIOSTInfo struct {
	Device   string       `json:"device,omitempty"` // empty: the slot is
	Source   int64        `json:"source"`           // the event that it is about, as _OST has it
	Status   int64        `json:"status"`           // the answer, as _OST has it
	Slot     string       `json:"slot"`
	SlotType ACPISlotType `json:"slot-type,omitempty"`
}

// DeviceDeleted says that a device is gone, so that its name may be used again.
// One device may give two: of a part of it, and of itself. (QAPI event
// DEVICE_DELETED.)
type DeviceDeleted struct {
	Device string `json:"device,omitempty"` // empty: it has no name
	Path   string `json:"path"`             // in the tree of objects
}

// Name returns "DEVICE_DELETED".
func (DeviceDeleted) Name() string { return "DEVICE_DELETED" }

// DeviceTrayMoved says that the tray of a drive has opened or closed. (QAPI
// event DEVICE_TRAY_MOVED.)
type DeviceTrayMoved struct {
	Device   string `json:"device"` // empty: the drive is not of the old kind
	TrayOpen bool   `json:"tray-open"`
	ID       string `json:"id,omitempty"` // empty: not said, before QEMU 2.9
}

// Name returns "DEVICE_TRAY_MOVED".
func (DeviceTrayMoved) Name() string { return "DEVICE_TRAY_MOVED" }

// NICRXFilterChanged says that the guest has changed which frames its card
// receives. It is not said again before somebody has asked which those are
// (query-rx-filter). (QAPI event NIC_RX_FILTER_CHANGED.)
type NICRXFilterChanged struct {
	NIC  string `json:"name,omitempty"` // its name; empty: it has none
	Path string `json:"path"`           // in the tree of objects
}

// Name returns "NIC_RX_FILTER_CHANGED".
func (NICRXFilterChanged) Name() string { return "NIC_RX_FILTER_CHANGED" }
