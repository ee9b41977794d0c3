//go:build linux && amd64

package gokvmhost

import (
	"io"
	"os"
	"reflect"
	"unsafe"

	"github.com/bobuhiro11/gokvm/machine"
	"github.com/bobuhiro11/gokvm/pci"
	"github.com/bobuhiro11/gokvm/tap"
	"github.com/bobuhiro11/gokvm/virtio"
)

// field returns a pointer to a field of the struct that p points to, private or
// not. The field is found by its name and must have exactly type T, or the error is
// a LayoutError.
func field[T any](p any, name string) (*T, error) {
	v := reflect.ValueOf(p)
	want := reflect.TypeFor[T]()
	e := &LayoutError{Type: v.Type().Elem().String(), Field: name, Want: want.String()}
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil, e
	}
	f, ok := v.Elem().Type().FieldByName(name)
	if !ok || len(f.Index) != 1 {
		return nil, e
	}
	if f.Type != want {
		e.Have = f.Type.String()
		return nil, e
	}
	return (*T)(unsafe.Add(v.UnsafePointer(), f.Offset)), nil
}

// portHandlers is gokvm's table of what to call for a port, to read it and to write
// it.
type portHandlers = [0x10000][2]func(port uint64, bytes []byte) error

// parts are the parts of a machine that gokvm does not export. Where a newer gokvm
// has a method for one, that is used.
type parts struct {
	vm       uintptr
	memory   []byte
	pci      *pci.PCI
	handlers *portHandlers // nil: none
}

// partsOf returns the parts of m, which is a *machine.Machine, or in tests
// another type.
func partsOf(m any) (p parts, err error) {
	if x, ok := m.(interface{ VMFd() uintptr }); ok {
		p.vm = x.VMFd()
	} else if f, err := field[uintptr](m, "vmFd"); err != nil {
		return p, err
	} else {
		p.vm = *f
	}
	if x, ok := m.(interface{ Mem() []byte }); ok {
		p.memory = x.Mem()
	} else if f, err := field[[]byte](m, "mem"); err != nil {
		return p, err
	} else {
		p.memory = *f
	}
	bus, err := field[*pci.PCI](m, "pci")
	if err != nil {
		return p, err
	}
	p.pci = *bus
	p.handlers, err = field[portHandlers](m, "ioportHandlers")
	return p, err
}

// vcpus returns the descriptors of a machine's vCPUs. CPUToFD does not check its
// argument well, so it gets none that is out of range.
func vcpus(m *machine.Machine) ([]uintptr, error) {
	var list []uintptr
	for i := range m.RunData() {
		fd, err := m.CPUToFD(i)
		if err != nil {
			return nil, err
		}
		list = append(list, fd)
	}
	return list, nil
}

// diskParts are the parts of gokvm's disk.
type diskParts struct {
	file *os.File
	kick chan any
}

func diskPartsOf(d *virtio.Blk) (p diskParts, err error) {
	file, err := field[*os.File](d, "file")
	if err != nil {
		return p, err
	}
	kick, err := field[chan any](d, "kick")
	if err != nil {
		return p, err
	}
	return diskParts{*file, *kick}, nil
}

// nicParts are the parts of gokvm's network card.
type nicParts struct {
	tap    int // the descriptor of the TAP interface
	txKick chan any
	rxKick chan os.Signal
}

func nicPartsOf(n *virtio.Net) (p nicParts, err error) {
	backend, err := fieldOf[*tap.Tap](n, "tap")
	if err != nil {
		return p, err
	}
	fd, err := field[int](backend, "fd")
	if err != nil {
		return p, err
	}
	tx, err := field[chan any](n, "txKick")
	if err != nil {
		return p, err
	}
	rx, err := field[chan os.Signal](n, "rxKick")
	if err != nil {
		return p, err
	}
	return nicParts{*fd, *tx, *rx}, nil
}

// fieldOf returns what an io.ReadWriter field holds, which must be a T.
func fieldOf[T any](p any, name string) (t T, err error) {
	f, err := field[io.ReadWriter](p, name)
	if err != nil {
		return t, err
	}
	t, ok := (*f).(T)
	if !ok {
		have := "nil"
		if *f != nil {
			have = reflect.TypeOf(*f).String()
		}
		return t, &LayoutError{
			Type: reflect.TypeOf(p).Elem().String(), Field: name,
			Want: reflect.TypeFor[T]().String(), Have: have,
		}
	}
	return t, nil
}
