package qemufile_test

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/gocolo/lockstep/qemufile"
)

// A run of values is put and flushed, read and asked about once.
func Example() {
	var stream bytes.Buffer
	w := qemufile.NewWriter(&stream)
	w.PutBE32(0x5145564d) // QEVM
	w.PutBE32(3)
	w.PutCountedString("pc.ram")
	if err := w.Flush(); err != nil {
		fmt.Println(err)
	}

	r := qemufile.NewReader(&stream)
	magic, version, name := r.BE32(), r.BE32(), r.CountedString()
	if err := r.Err(); err != nil {
		fmt.Println(err)
	}
	fmt.Printf("%#x version %d, block %s, at offset %d\n", magic, version, name, r.Offset())

	r.BE64() // there is no more
	var e *qemufile.Error
	fmt.Println(errors.As(r.Err(), &e), e.Offset)
	// Output:
	// 0x5145564d version 3, block pc.ram, at offset 15
	// true 15
}
