//go:build !linux

package tap

import "errors"

// A Device is a TAP interface. There are none on this system.
type Device struct{}

// Open returns an [*Error] that wraps errors.ErrUnsupported.
func Open(cfg Config) (*Device, error) {
	return nil, &Error{Op: "open", Name: cfg.Name, Err: errors.ErrUnsupported}
}

// Name returns the name of the interface.
func (d *Device) Name() string { return "" }

// VNetHdrLen returns the length of the virtio-net header of each frame.
func (d *Device) VNetHdrLen() int { return 0 }

// SetOffload changes what is left to the reader.
func (d *Device) SetOffload(o Offload) error { return errors.ErrUnsupported }

// ReadPacket returns the next frame.
func (d *Device) ReadPacket() ([]byte, error) { return nil, errors.ErrUnsupported }

// ReadInto writes the next frame into p.
func (d *Device) ReadInto(p []byte) (int, error) { return 0, errors.ErrUnsupported }

// WritePacket sends one frame.
func (d *Device) WritePacket(p []byte) error { return errors.ErrUnsupported }

// WriteVNetPacket sends one frame with a virtio-net header of another length.
func (d *Device) WriteVNetPacket(p []byte, hdrLen int) error { return errors.ErrUnsupported }

// Lost returns how many frames were not taken.
func (d *Device) Lost() uint64 { return 0 }

// Close ends the device.
func (d *Device) Close() error { return errors.ErrUnsupported }
