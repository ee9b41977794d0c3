package standby

import "errors"

var (
	// ErrNothing: no initial migration has been committed, so there is no
	// guest to write or to replicate.
	ErrNothing = errors.New("standby: no guest has been received")

	// ErrVoid: a commit without a checkpoint that was loaded whole.
	ErrVoid = errors.New("standby: nothing valid is staged")

	// ErrStale: a View that was closed or read before, or for which more pages would have to be
	// kept than its bound allows.
	ErrStale = errors.New("standby: the view is too old")

	// ErrTooLarge: more memory than Config.MaxRAM, more staged pages than Config.MaxStaged,
	// or more devices than a Replica keeps.
	ErrTooLarge = errors.New("standby: too large")

	// ErrLive: a live section other than memory. Its contents cannot be kept
	// without knowing the device.
	ErrLive = errors.New("standby: live device is not memory")

	// ErrShared: the stream leaves shared memory out (x-ignore-shared).
	ErrShared = errors.New("standby: shared memory is not in the stream")

	// ErrMapped: the input is a file of the capability mapped-ram, whose memory
	// is at fixed places, and no stream.
	ErrMapped = errors.New("standby: a mapped-ram file is no stream")

	// ErrBlocks: a block list in a checkpoint that is not the initial one.
	ErrBlocks = errors.New("standby: the block list has changed")

	// ErrNoDescription: the initial migration ended without a description of
	// its devices.
	ErrNoDescription = errors.New("standby: the stream does not describe its devices")
)
