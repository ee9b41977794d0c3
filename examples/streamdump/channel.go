package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// channels are the connections of multifd, a file for each. What comes over them
// is ordered with the main stream by their SYNC packets: up to QEMU 8.0 there is
// one for the end of each RAM section, from 8.1 on one for each MULTIFD_FLUSH.
type channels struct {
	open    []*channel
	flushes bool  // the main stream says when
	devices int64 // bytes of device state, which nothing here reads
}

// channel is a file with the bytes of a multifd connection.
type channel struct {
	name  string
	id    uint8
	uuid  [16]byte
	file  io.Closer
	r     *multifd.Reader
	ended bool
}

// add opens the file of a channel.
func (c *channels) add(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	r := qemufile.NewReader(f)
	var uuid [16]byte
	if p := r.Peek(64); len(p) == 64 {
		copy(uuid[:], p[8:]) // whose it is, the main stream need not say
	}
	init, err := multifd.ReadInit(r, uuid, 256)
	if err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, other := range c.open {
		if other.id == init.Channel || other.uuid != uuid {
			f.Close()
			return fmt.Errorf("%s: channel %d of VM %x is another of the same number, or of another VM", name, init.Channel, uuid)
		}
	}
	mr := multifd.NewReader(r)
	mr.Decoder = decoder
	c.open = append(c.open, &channel{name: name, id: init.Channel, uuid: uuid, file: f, r: mr})
	return nil
}

// sync takes what the channels have sent up to here. flush says that the main
// stream has a MULTIFD_FLUSH here, and not the end of a section.
func (c *channels) sync(flush bool, take func(*ram.Record) error) error {
	if flush {
		c.flushes = true
	}
	if flush != c.flushes {
		return nil
	}
	return c.drain(false, take)
}

// drain takes the packets of every channel up to its next SYNC, or all of them.
func (c *channels) drain(all bool, take func(*ram.Record) error) error {
	for _, ch := range c.open {
		for !ch.ended {
			p, err := ch.r.Read()
			if err == io.EOF {
				ch.ended = true
				break
			}
			if err == nil {
				err = c.packet(ch, p, take)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", ch.name, err)
			}
			if p.Sync && !all {
				break
			}
		}
	}
	return nil
}

func (c *channels) packet(ch *channel, p *multifd.Packet, take func(*ram.Record) error) error {
	if p.Device != nil {
		c.devices += int64(len(p.Data))
		return nil
	}
	pages, err := ch.r.Pages()
	if err != nil {
		return err
	}
	for i, off := range p.Normal {
		data := pages[i*ram.PageSize : (i+1)*ram.PageSize]
		if err := take(&ram.Record{Kind: ram.KindPage, Block: p.Block, Offset: off, Length: ram.PageSize, Data: data}); err != nil {
			return err
		}
	}
	for _, off := range p.Zero {
		if err := take(&ram.Record{Kind: ram.KindZero, Block: p.Block, Offset: off}); err != nil {
			return err
		}
	}
	return nil
}

func (c *channels) close() error {
	var errs []error
	for _, ch := range c.open {
		errs = append(errs, ch.file.Close())
	}
	return errors.Join(errs...)
}
