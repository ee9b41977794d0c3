package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
	"github.com/gocolo/lockstep/vmstate/ram"
	"github.com/gocolo/lockstep/vmstate/ram/multifd"
)

// channels are the other connections of a migration, a file for each. What comes over those
// of multifd is ordered with the main stream by their SYNC packets: up to QEMU 8.0 there is
// one for the end of each RAM section, from 8.1 on one for each MULTIFD_FLUSH. What comes over
// one of postcopy-preempt comes once and last: pages that the guest waits for.
type channels struct {
	open    []*channel
	flushes bool  // the main stream says when
	devices int64 // bytes of device state, which nothing here reads
}

// channel is a file with the bytes of a connection.
type channel struct {
	name  string
	file  io.Closer
	in    *qemufile.Reader
	id    uint8
	uuid  [16]byte
	r     *multifd.Reader // nil: the connection is of postcopy-preempt
	ended bool
}

// add opens the file of a channel.
func (c *channels) add(name string) error {
	f, err := openFile(name)
	if err != nil {
		return err
	}
	ch := &channel{name: name, file: f, in: qemufile.NewReader(f)}
	if !preempt(ch.in.Peek(8)) {
		err = c.multifd(ch)
	}
	if errors.Is(err, io.EOF) {
		err = errors.New("the file is empty")
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", name, err)
	}
	c.open = append(c.open, ch)
	return nil
}

// preempt reports whether a connection that begins so is of postcopy-preempt: records of memory
// without anything before them.
func preempt(head []byte) bool {
	if len(head) < 8 || head[0] != 0 {
		return false
	}
	flags := head[7]
	return flags == 0x02 || flags == 0x08 || flags == 0x10 // a zero page, a page, or the end
}

// multifd reads the beginning of a channel.
func (c *channels) multifd(ch *channel) error {
	if p := ch.in.Peek(64); len(p) == 64 {
		copy(ch.uuid[:], p[8:]) // whose it is, the main stream need not say
	}
	init, err := multifd.ReadInit(ch.in, ch.uuid, 256)
	if err != nil {
		return err
	}
	ch.id = init.Channel
	for _, other := range c.open {
		if other.r != nil && (other.id == ch.id || other.uuid != ch.uuid) {
			return fmt.Errorf("channel %d of VM %x is another of the same number, or of another VM", ch.id, ch.uuid)
		}
	}
	ch.r = multifd.NewReader(ch.in)
	ch.r.Decoder = decoder
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
	return c.drain(take, false)
}

// drain takes the packets of every channel of multifd up to its next SYNC, or all of them.
func (c *channels) drain(take func(*ram.Record) error, all bool) error {
	for _, ch := range c.open {
		for ch.r != nil && !ch.ended {
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

// end takes what is left in all of them. Pages have size bytes.
func (c *channels) end(take func(*ram.Record) error, size int) error {
	if err := c.drain(take, true); err != nil {
		return err
	}
	for _, ch := range c.open {
		if ch.r != nil {
			continue
		}
		k := ram.Walker{PageSize: size}
		err := k.Walk(ch.in, func(rec *ram.Record) error {
			if !rec.Page() {
				return nil
			}
			return take(rec)
		})
		if _, more := ch.in.PeekByte(); err == nil && more {
			err = fmt.Errorf("offset %d: %w after the end of the pages", ch.in.Offset(), vmstate.ErrTrailing)
		} else if err == nil {
			err = ch.in.Failure()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", ch.name, err)
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
