package ram_test

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
)

var (
	_ vmstate.LiveSaver  = (*ram.Saver)(nil)
	_ vmstate.Capturer   = (*ram.Saver)(nil)
	_ vmstate.Pender     = (*ram.Saver)(nil)
	_ vmstate.Cleaner    = (*ram.Saver)(nil)
	_ vmstate.LiveLoader = (*ram.Cache)(nil)
)

// log is a dirty log of one block, whose pages the example marks by hand.
type log struct{ dirty ram.Bitmap }

func (l log) ReadDirty(_ string, bitmap []uint64) error {
	ram.Bitmap(bitmap).Or(l.dirty)
	clear(l.dirty)
	return nil
}

// Two guests of 16 pages, kept equal through a registry each: the initial
// synchronisation, then a checkpoint that is captured and sent later.
func Example() {
	entry := vmstate.Entry{Name: ram.SectionName, Version: ram.Version, MinVersion: ram.Version}
	memory, copied := make([]byte, 16*ram.PageSize), make([]byte, 16*ram.PageSize)
	dirty := log{ram.NewBitmap(16)}

	var primary, secondary vmstate.Registry
	saver := ram.NewSaver([]ram.Block{{Name: "ram", Host: memory}}, dirty, ram.SaverConfig{})
	cache, err := ram.NewCache([]ram.Block{{Name: "ram", Host: copied}}, nil, ram.CacheConfig{})
	check(err)
	defer cache.Close()
	check(primary.RegisterLive(entry, saver, nil))
	check(secondary.RegisterLive(entry, nil, cache))

	var conn bytes.Buffer
	w, r := qemufile.NewWriter(&conn), qemufile.NewReader(&conn)

	// The initial synchronisation.
	copy(memory, "state of the guest")
	check(primary.SaveSetup(w))
	for done := false; !done; {
		done, err = primary.SaveIterate(w)
		check(err)
	}
	check(primary.SaveComplete(w))
	vmstate.PutEOF(w)
	check(w.Flush())
	check(secondary.Load(r, nil))
	check(secondary.Commit())
	check(cache.Flush())
	fmt.Printf("%s\n", copied[:18])

	// A checkpoint. The guest is paused for Capture only.
	copy(memory, "STATE")
	dirty.dirty.Set(0)
	whole, err := primary.Capture()
	check(err)
	copy(memory, "later")
	dirty.dirty.Set(0)
	check(primary.SaveComplete(w))
	vmstate.PutEOF(w)
	check(w.Flush())
	check(secondary.Load(r, nil))
	check(cache.Flush())
	fmt.Printf("%s (%v, %d page)\n", copied[:18], whole, saver.Stats().Pages)
	// Output:
	// state of the guest
	// STATE of the guest (true, 1 page)
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

// TestConnectionCutAnywhereLeavesTheGuest sends a guest through a registry and a connection that
// is cut at every byte: the guest on the other side stays as it was.
func TestConnectionCutAnywhereLeavesTheGuest(t *testing.T) {
	entry := vmstate.Entry{Name: ram.SectionName, Version: ram.Version, MinVersion: ram.Version}
	memory, copied := make([]byte, 4*ram.PageSize), make([]byte, 4*ram.PageSize)
	copy(memory[ram.PageSize:], "hello")
	var primary vmstate.Registry
	saver := ram.NewSaver([]ram.Block{{Name: "ram", Host: memory}}, log{ram.NewBitmap(4)}, ram.SaverConfig{})
	if err := primary.RegisterLive(entry, saver, nil); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	w := qemufile.NewWriter(&stream)
	for _, err := range []error{primary.SaveSetup(w), primary.SaveComplete(w)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	vmstate.PutEOF(w)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	for n := range stream.Len() {
		if n > 200 && n%61 != 0 {
			continue
		}
		cache, err := ram.NewCache([]ram.Block{{Name: "ram", Host: copied}}, nil, ram.CacheConfig{})
		if err != nil {
			t.Fatal(err)
		}
		var secondary vmstate.Registry
		if err := secondary.RegisterLive(entry, nil, cache); err != nil {
			t.Fatal(err)
		}
		var r qemufile.Reader
		r.ResetBytes(stream.Bytes()[:n])
		if err := secondary.Load(&r, nil); err == nil {
			t.Fatalf("%d bytes of %d are enough", n, stream.Len())
		}
		cache.Discard()
		if !bytes.Equal(copied, make([]byte, len(copied))) {
			t.Fatalf("%d bytes changed the guest", n)
		}
		if err := cache.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
