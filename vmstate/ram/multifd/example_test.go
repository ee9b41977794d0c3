package multifd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// A channel introduces itself, and says for whom it is.
func ExampleReadInit() {
	var channel bytes.Buffer
	w := qemufile.NewWriter(&channel)
	multifd.Init{Channel: 1}.Put(w)
	if err := w.Flush(); err != nil {
		fmt.Println(err)
	}
	sent := channel.Bytes()

	in, err := multifd.ReadInit(qemufile.NewReader(bytes.NewReader(sent)), [16]byte{}, 2)
	fmt.Println(in.Channel, err)

	// A migration with one channel has no second one.
	_, err = multifd.ReadInit(qemufile.NewReader(bytes.NewReader(sent)), [16]byte{}, 1)
	fmt.Println(errors.Is(err, multifd.ErrChannel))

	_, err = multifd.ReadInit(qemufile.NewReader(bytes.NewReader(sent[:10])), [16]byte{}, 2)
	fmt.Println(errors.Is(err, io.ErrUnexpectedEOF))
	// Output:
	// 1 <nil>
	// true
	// true
}
