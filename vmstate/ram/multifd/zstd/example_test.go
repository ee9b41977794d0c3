package zstd_test

import (
	"bytes"
	"fmt"
	"log"

	"github.com/gocolo/lockstep/vmstate/ram/multifd"
	"github.com/gocolo/lockstep/vmstate/ram/multifd/zstd"
)

// A page goes over a channel. A host gives the two functions to its channels
// (colo.Channels, migrate.Channels) and does no more.
func Example() {
	compressor, err1 := zstd.Compressor(multifd.Zstd)
	decoder, err2 := zstd.Decoder(multifd.Zstd)
	if err1 != nil || err2 != nil {
		log.Fatal(err1, err2)
	}
	page := bytes.Repeat([]byte("guest "), 683)[:4096]
	packet, err := compressor.Compress(nil, page)
	if err != nil {
		log.Fatal(err)
	}
	got := make([]byte, len(page))
	if err := decoder.Decode(got, packet); err != nil {
		log.Fatal(err)
	}
	fmt.Println("less than a tenth:", len(packet) < len(page)/10)
	fmt.Println("the same page:", bytes.Equal(got, page))
	// Output:
	// less than a tenth: true
	// the same page: true
}
