package event

// The events that QEMU has for clients that look at the screen of a guest.

// AddressFamily is the kind of a network address. (QAPI enum NetworkAddressFamily.)
type AddressFamily string

// The families.
const (
	FamilyIPv4    AddressFamily = "ipv4"
	FamilyIPv6    AddressFamily = "ipv6"
	FamilyUnix    AddressFamily = "unix"
	FamilyVsock   AddressFamily = "vsock"
	FamilyUnknown AddressFamily = "unknown"
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (f *AddressFamily) UnmarshalText(text []byte) error {
	return word(f, text, "NetworkAddressFamily")
}

// SPICEAddress is one end of a connection. (QAPI type SpiceBasicInfo.)
type SPICEAddress struct {
	Port   string        `json:"port"`
	Family AddressFamily `json:"family,omitempty"`
	Host   string        `json:"host"`
}

// SPICEServer is the server's end of a connection. (QAPI type SpiceServerInfo.)
type SPICEServer struct {
	Auth   string        `json:"auth,omitempty"` // how clients prove who they are
	Port   string        `json:"port"`
	Family AddressFamily `json:"family,omitempty"`
	Host   string        `json:"host"`
}

// SPICEChannel is the client's end of a channel. (QAPI type SpiceChannel.)
type SPICEChannel struct {
	Port         string        `json:"port"`
	Family       AddressFamily `json:"family,omitempty"`
	ChannelType  int64         `json:"channel-type"`
	ConnectionID int64         `json:"connection-id"` // of all channels of a client; may be negative
	Host         string        `json:"host"`
	ChannelID    int64         `json:"channel-id"`
	TLS          bool          `json:"tls"`
}

// SPICEConnected says that a client has connected. [SPICEInitialized] follows
// when it has proved who it is, [SPICEDisconnected] in any case. (QAPI event
// SPICE_CONNECTED.)
type SPICEConnected struct {
	Server SPICEAddress `json:"server"`
	Client SPICEAddress `json:"client"`
}

// Name returns "SPICE_CONNECTED".
func (SPICEConnected) Name() string { return "SPICE_CONNECTED" }

// SPICEInitialized says that a channel of a client is in use. The first
// documents list the server's auth beside it. (QAPI event SPICE_INITIALIZED.)
type SPICEInitialized struct {
	Server SPICEServer  `json:"server"`
	Client SPICEChannel `json:"client"`
}

// Name returns "SPICE_INITIALIZED".
func (SPICEInitialized) Name() string { return "SPICE_INITIALIZED" }

// SPICEDisconnected says that a client is gone. (QAPI event SPICE_DISCONNECTED.)
type SPICEDisconnected struct {
	Server SPICEAddress `json:"server"`
	Client SPICEAddress `json:"client"`
}

// Name returns "SPICE_DISCONNECTED".
func (SPICEDisconnected) Name() string { return "SPICE_DISCONNECTED" }

// VNCServer is the server's end of a connection. (QAPI type VncServerInfo.)
type VNCServer struct {
	Auth      string        `json:"auth,omitempty"` // how clients prove who they are
	Family    AddressFamily `json:"family,omitempty"`
	Service   string        `json:"service"` // the port, or the path of a Unix socket
	Host      string        `json:"host"`
	WebSocket bool          `json:"websocket"` // false: or not said, before QEMU 2.3
}

// VNCClient is the client's end of a connection. (QAPI type VncClientInfo.)
type VNCClient struct {
	Family       AddressFamily `json:"family,omitempty"`
	Service      string        `json:"service"`
	X509DName    string        `json:"x509_dname,omitempty"` // of the client's certificate; not before it has been looked at
	Host         string        `json:"host"`
	WebSocket    bool          `json:"websocket"`               // false: or not said, before QEMU 2.3
	SASLUsername string        `json:"sasl_username,omitempty"` // not before it has been asked for
}

// VNCConnected says that a client has connected. [VNCInitialized] follows when
// it has proved who it is, [VNCDisconnected] in any case. (QAPI event VNC_CONNECTED.)
type VNCConnected struct {
	Server VNCServer `json:"server"`
	Client VNCClient `json:"client"`
}

// Name returns "VNC_CONNECTED".
func (VNCConnected) Name() string { return "VNC_CONNECTED" }

// VNCInitialized says that a client is in use. (QAPI event VNC_INITIALIZED.)
type VNCInitialized struct {
	Server VNCServer `json:"server"`
	Client VNCClient `json:"client"`
}

// Name returns "VNC_INITIALIZED".
func (VNCInitialized) Name() string { return "VNC_INITIALIZED" }

// VNCDisconnected says that a client is gone. (QAPI event VNC_DISCONNECTED.)
type VNCDisconnected struct {
	Server VNCServer `json:"server"`
	Client VNCClient `json:"client"`
}

// Name returns "VNC_DISCONNECTED".
func (VNCDisconnected) Name() string { return "VNC_DISCONNECTED" }
