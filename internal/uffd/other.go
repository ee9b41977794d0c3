//go:build !linux || (!amd64 && !arm64)

package uffd

import "runtime"

// errPlatform is returned by every function here.
var errPlatform = &FeatureError{What: "userfaultfd: " + runtime.GOOS + "/" + runtime.GOARCH}

// FD stands for a userfaultfd. There is none on this platform.
type FD struct{ _ int }

// Open fails with a [*FeatureError].
func Open(features Feature) (*FD, error) { return nil, errPlatform }

// Register fails with a [*FeatureError].
func (f *FD) Register(mem []byte, mode Mode) error { return errPlatform }

// Unregister fails with a [*FeatureError].
func (f *FD) Unregister(mem []byte) error { return errPlatform }

// Copy fails with a [*FeatureError].
func (f *FD) Copy(dst, src []byte) (int, error) { return 0, errPlatform }

// Zero fails with a [*FeatureError].
func (f *FD) Zero(dst []byte) (int, error) { return 0, errPlatform }

// Wake fails with a [*FeatureError].
func (f *FD) Wake(mem []byte) error { return errPlatform }

// WriteProtect fails with a [*FeatureError].
func (f *FD) WriteProtect(mem []byte, on bool) error { return errPlatform }

// CanWait fails with a [*FeatureError].
func (f *FD) CanWait() error { return errPlatform }

// Faults fails with a [*FeatureError].
func (f *FD) Faults(buf []Fault) (int, error) { return 0, errPlatform }

// Interrupt does nothing.
func (f *FD) Interrupt() {}

// Close does nothing.
func (f *FD) Close() error { return nil }

// Populate fails with a [*FeatureError].
func Populate(mem []byte) error { return errPlatform }

// Pagemap stands for /proc/self/pagemap. There is none on this platform.
type Pagemap struct{ _ int }

// OpenPagemap fails with a [*FeatureError].
func OpenPagemap() (*Pagemap, error) { return nil, errPlatform }

// Scan fails with a [*FeatureError].
func (p *Pagemap) Scan(mem []byte, fn func(Region)) error { return errPlatform }

// Close does nothing.
func (p *Pagemap) Close() error { return nil }

// Drop fails with a [*FeatureError].
func Drop(mem []byte) error { return errPlatform }

// SmallPages fails with a [*FeatureError].
func SmallPages(mem []byte) error { return errPlatform }

// HugePages fails with a [*FeatureError].
func HugePages(mem []byte) error { return errPlatform }
