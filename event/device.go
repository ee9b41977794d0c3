package event

// The events that QEMU has for devices that a guest plugs, ejects and configures.

// ACPISlotType is the kind of device that a slot of [ACPIDeviceOST] takes. (QAPI enum
// ACPISlotType.)
type ACPISlotType string

// The types of slots.
const (
	ACPISlotDIMM ACPISlotType = "DIMM"
	ACPISlotCPU  ACPISlotType = "CPU"
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (t *ACPISlotType) UnmarshalText(text []byte) error { return word(t, text, "ACPISlotType") }

// ACPIDeviceOST says how a request to plug or unplug a device has ended in the guest
// (_OST of the ACPI specification). The first documents show the members of
// Info at the top level. (QAPI event ACPI_DEVICE_OST.)
type ACPIDeviceOST struct {
	Info ACPIOSTInfo `json:"info"`
}

// Name returns "ACPI_DEVICE_OST".
func (ACPIDeviceOST) Name() string { return "ACPI_DEVICE_OST" }

// ACPIOSTInfo is the QAPI type of the same name.
type ACPIOSTInfo struct {
	Device   string       `json:"device,omitempty"` // empty: the slot is
	Source   int64        `json:"source"`           // the event that it answers: the first argument of _OST
	Status   int64        `json:"status"`           // the answer: the second argument of _OST
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
// receives. QEMU does not publish it again before a client has asked which those are
// (query-rx-filter). (QAPI event NIC_RX_FILTER_CHANGED.)
type NICRXFilterChanged struct {
	NIC  string `json:"name,omitempty"` // its name; empty: it has none
	Path string `json:"path"`           // in the tree of objects
}

// Name returns "NIC_RX_FILTER_CHANGED".
func (NICRXFilterChanged) Name() string { return "NIC_RX_FILTER_CHANGED" }
