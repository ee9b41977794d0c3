package migrate

import "errors"

var (
	// ErrUnknown means that the connection broke while the devices were sent, or before
	// the destination said that it had them: it may have the guest or not. At the source
	// the guest stands still. Whoever knows that it does not run at the destination may
	// resume it at the source.
	ErrUnknown = errors.New("migrate: the destination may have the guest")
	// ErrRefused means that the destination says that it failed. In precopy the guest runs
	// on at the source.
	ErrRefused = errors.New("migrate: the destination has failed")
	// ErrPaused means that the connection broke in postcopy, and there is no other. The
	// guest belongs to the destination, and what waits for memory there waits. From a
	// Source it means that the destination had the devices. Whether the guest has run
	// there, the error of the Destination says: it is ErrPaused too if so, and another
	// one if the guest never will.
	ErrPaused = errors.New("migrate: postcopy is paused")
	// ErrEnded is returned by Run of a Source or a Destination whose Run was called before.
	ErrEnded = errors.New("migrate: this migration was run already")
	// ErrChannelStuck means that one of Channels brought nothing for a minute while the
	// stream waited for the end of a section there, or did not take a packet for as
	// long: the other side is not in step ([Channels] says what a QEMU needs), or
	// stands still.
	ErrChannelStuck = errors.New("migrate: a channel is stuck")
)
