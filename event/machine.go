package event

// The events that QEMU has for the machine as a whole. The comment of each says
// what it means, and which event must follow it, if one must.
// [Order] checks what follows.

// ShutdownCause says why a machine was reset or shut down. (QAPI enum of the same
// name.)
type ShutdownCause string

// The causes.
const (
	ShutdownNone            ShutdownCause = "none"
	ShutdownHostError       ShutdownCause = "host-error"
	ShutdownHostQMPQuit     ShutdownCause = "host-qmp-quit"
	ShutdownHostSystemReset ShutdownCause = "host-qmp-system-reset"
	ShutdownHostSignal      ShutdownCause = "host-signal"
	ShutdownHostUI          ShutdownCause = "host-ui"
	ShutdownGuestShutdown   ShutdownCause = "guest-shutdown"
	ShutdownGuestReset      ShutdownCause = "guest-reset"
	ShutdownGuestPanic      ShutdownCause = "guest-panic"
	ShutdownSubsystemReset  ShutdownCause = "subsystem-reset"
	ShutdownSnapshotLoad    ShutdownCause = "snapshot-load"
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (c *ShutdownCause) UnmarshalText(text []byte) error { return word(c, text, "ShutdownCause") }

// Reset says that the machine was reset. Firmware may reset it some more times
// while it starts. (QAPI event RESET.)
type Reset struct {
	Guest  bool          `json:"guest"`            // the guest asked for it
	Reason ShutdownCause `json:"reason,omitempty"` // empty: not said, before QEMU 4.0
}

// Name returns "RESET".
func (Reset) Name() string { return "RESET" }

// MarshalJSON leaves out all of an event that came without members, as the
// first documents have it.
func (r Reset) MarshalJSON() ([]byte, error) { return shutdownJSON(r.Guest, r.Reason) }

// Shutdown says that the machine has shut down and that the emulator is about to
// exit. With -no-shutdown it does not exit, and [Stop] follows if the guest was the
// cause. (QAPI event SHUTDOWN.)
type Shutdown struct {
	Guest  bool          `json:"guest"`            // the guest is the cause
	Reason ShutdownCause `json:"reason,omitempty"` // empty: not said, before QEMU 4.0
}

// Name returns "SHUTDOWN".
func (Shutdown) Name() string { return "SHUTDOWN" }

// MarshalJSON leaves out all of an event that came without members, as the
// first documents have it.
func (s Shutdown) MarshalJSON() ([]byte, error) { return shutdownJSON(s.Guest, s.Reason) }

// Powerdown says that the guest was asked to power down, as by a button. It may
// do so or not. (QAPI event POWERDOWN.)
type Powerdown struct{}

// Name returns "POWERDOWN".
func (Powerdown) Name() string { return "POWERDOWN" }

// Suspend says that the guest sleeps in memory (S3). No [Stop] comes with it; a
// [Wakeup] or a [Reset] ends it. (QAPI event SUSPEND.)
type Suspend struct{}

// Name returns "SUSPEND".
func (Suspend) Name() string { return "SUSPEND" }

// SuspendDisk says that the guest sleeps on its disk (S4). A [Shutdown] follows.
// (QAPI event SUSPEND_DISK.)
type SuspendDisk struct{}

// Name returns "SUSPEND_DISK".
func (SuspendDisk) Name() string { return "SUSPEND_DISK" }

// Wakeup says that the guest has left its sleep, see [Suspend]. (QAPI event
// WAKEUP.)
type Wakeup struct{}

// Name returns "WAKEUP".
func (Wakeup) Name() string { return "WAKEUP" }

// WatchdogAction is the answer of QEMU to a watchdog that has run out. (QAPI enum of the
// same name.)
type WatchdogAction string

// The actions.
const (
	WatchdogReset     WatchdogAction = "reset"      // Reset follows
	WatchdogShutdown  WatchdogAction = "shutdown"   // the guest is asked to: Powerdown follows, or Shutdown
	WatchdogPoweroff  WatchdogAction = "poweroff"   // the emulator exits, and says no more
	WatchdogPause     WatchdogAction = "pause"      // Stop follows
	WatchdogDebug     WatchdogAction = "debug"      // nothing but a message
	WatchdogNone      WatchdogAction = "none"       // nothing is done
	WatchdogInjectNMI WatchdogAction = "inject-nmi" // the guest gets an NMI
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (a *WatchdogAction) UnmarshalText(text []byte) error { return word(a, text, "WatchdogAction") }

// Watchdog says that the guest's watchdog has run out, and what is done: the
// action tells what follows. Its rate is limited ([Limiter]), so what follows
// may arrive first, with a later time. (QAPI event WATCHDOG.)
type Watchdog struct {
	Action WatchdogAction `json:"action,omitempty"`
}

// Name returns "WATCHDOG".
func (Watchdog) Name() string { return "WATCHDOG" }

// PanicAction is the answer of QEMU to a guest that has panicked. (QAPI enum
// GuestPanicAction.)
type PanicAction string

// The actions.
const (
	PanicPause    PanicAction = "pause"    // Stop follows
	PanicPoweroff PanicAction = "poweroff" // Shutdown follows
	PanicRun      PanicAction = "run"      // nothing: the guest goes on
)

// UnmarshalText accepts any word, listed here or not. A text that is no word gives an
// [*EnumError].
func (a *PanicAction) UnmarshalText(text []byte) error { return word(a, text, "GuestPanicAction") }

// GuestPanicked says that the guest's kernel has given up, and what is done: the
// action tells what follows. (QAPI event GUEST_PANICKED.)
type GuestPanicked struct {
	Action PanicAction `json:"action,omitempty"`
	Info   *PanicInfo  `json:"info,omitempty"` // nil: none was given
}

// Name returns "GUEST_PANICKED".
func (GuestPanicked) Name() string { return "GUEST_PANICKED" }

// GuestCrashloaded says that the guest has panicked and handles it itself, with
// a crash kernel. (QAPI event GUEST_CRASHLOADED.)
type GuestCrashloaded struct {
	Action PanicAction `json:"action,omitempty"`
	Info   *PanicInfo  `json:"info,omitempty"` // nil: none was given
}

// Name returns "GUEST_CRASHLOADED".
func (GuestCrashloaded) Name() string { return "GUEST_CRASHLOADED" }

// PanicInfo is the report of a guest on its panic. Type tells which of the pointers
// is set; with a type that is not known here both are nil. (QAPI union
// GuestPanicInformation.)
type PanicInfo struct {
	Type string `json:"type"` // "hyper-v", "s390", ...
	*HyperVPanic
	*S390Panic
}

// HyperVPanic is a crash as a guest of the Hyper-V interfaces reports it.
type HyperVPanic struct {
	Arg1 uint64 `json:"arg1"`
	Arg2 uint64 `json:"arg2"`
	Arg3 uint64 `json:"arg3"`
	Arg4 uint64 `json:"arg4"`
	Arg5 uint64 `json:"arg5"`
}

// S390Panic is a crash of an s390 guest.
type S390Panic struct {
	Core    uint32 `json:"core"`
	PSWMask uint64 `json:"psw-mask"`
	PSWAddr uint64 `json:"psw-addr"`
	Reason  string `json:"reason"` // "unknown", "disabled-wait", "extint-loop", "pgmint-loop", "opint-loop"
}

// RTCChange says that the guest has set its clock. Its rate is limited
// ([Limiter]). (QAPI event RTC_CHANGE.)
type RTCChange struct {
	Offset  int64  `json:"offset"`             // between the guest's clock and the host's, seconds
	QOMPath string `json:"qom-path,omitempty"` // which clock; empty: not said, before QEMU 7.0
}

// Name returns "RTC_CHANGE".
func (RTCChange) Name() string { return "RTC_CHANGE" }

// BalloonChange says that the guest's memory has a new size, and comes for each
// step on the way to what was asked for. Its rate is limited ([Limiter]).
// (QAPI event BALLOON_CHANGE.)
type BalloonChange struct {
	Actual int64 `json:"actual"` // the guest's memory without the balloon, bytes
}

// Name returns "BALLOON_CHANGE".
func (BalloonChange) Name() string { return "BALLOON_CHANGE" }
