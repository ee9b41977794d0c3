package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// counts are the pages of a section or of a stream.
type counts struct {
	Pages  int64             `json:"pages"` // of every kind
	Zero   int64             `json:"zero"`
	XBZRLE int64             `json:"xbzrle"`
	Blocks map[string]*block `json:"blocks"`

	last   *block // of lastOf: records come in runs
	lastOf string
}

// block counts what the stream has of a RAM block.
type block struct {
	Bytes  int64 `json:"bytes"` // bytes that the block takes in the stream
	Pages  int64 `json:"pages"`
	Zero   int64 `json:"zero"`
	XBZRLE int64 `json:"-"`
}

func (c *counts) add(rec *ram.Record) {
	if !rec.Page() {
		return
	}
	b := c.last
	if b == nil || c.lastOf != rec.Block {
		if b = c.Blocks[rec.Block]; b == nil {
			if c.Blocks == nil {
				c.Blocks = make(map[string]*block)
			}
			b = new(block)
			c.Blocks[rec.Block] = b
		}
		c.last, c.lastOf = b, rec.Block
	}
	c.Pages++
	b.Pages++
	b.Bytes += rec.Length
	switch rec.Kind {
	case ram.KindZero:
		c.Zero++
		b.Zero++
	case ram.KindXBZRLE:
		c.XBZRLE++
		b.XBZRLE++
	}
}

// memory reads RAM sections.
type memory struct {
	walker   ram.Walker
	dir      string // where to extract to; empty: nowhere
	channels channels
	total    counts
	sizes    map[string]uint64
	list     []string // the names of the blocks, in the stream's order
	files    map[string]*os.File
	page     []byte

	seen    map[string]*seen
	last    *seen // what is known of the block lastOf
	lastOf  string
	pieces  int
	unknown bool // more pages than can be told apart
}

// section reads the body of one section, up to its footer, and calls fn for each
// record.
func (m *memory) section(r *qemufile.Reader, fn func(*ram.Record)) (counts, error) {
	c := counts{Blocks: make(map[string]*block)}
	err := m.walker.Walk(r, func(rec *ram.Record) error {
		c.add(rec)
		m.total.add(rec)
		if len(m.total.Blocks) > ram.MaxBlocks {
			return fmt.Errorf("offset %d: pages of more than %d blocks", rec.Stream, ram.MaxBlocks)
		}
		switch rec.Kind {
		case ram.KindMappedBlock, ram.KindBlockList:
			if err := m.enter(rec); err != nil {
				return err
			}
		}
		fn(rec)
		switch {
		case rec.Page():
			return m.take(rec)
		case rec.Kind == ram.KindMultiFDFlush, rec.Kind == ram.KindEOS:
			return m.channels.sync(rec.Kind == ram.KindMultiFDFlush, m.takeElsewhere)
		}
		return nil
	})
	return c, err
}

// enter takes the blocks of a list.
func (m *memory) enter(rec *ram.Record) error {
	if m.sizes == nil {
		m.sizes = make(map[string]uint64)
		m.files = make(map[string]*os.File)
		m.seen = make(map[string]*seen)
	}
	for _, b := range rec.Blocks {
		if _, ok := m.sizes[b.Name]; !ok {
			if len(m.list) == ram.MaxBlocks {
				return fmt.Errorf("offset %d: lists of more than %d blocks", rec.Stream, ram.MaxBlocks)
			}
			m.list = append(m.list, b.Name)
		}
		m.sizes[b.Name] = b.Length
		if rec.Kind == ram.KindMappedBlock {
			// What a mapped file does not have is zeros, and there.
			m.all(b.Name)
		}
		if m.dir == "" {
			continue
		}
		if err := m.create(b.Name, b.Length); err != nil {
			return err
		}
	}
	return nil
}

// all says that every page of a block is there.
func (m *memory) all(name string) {
	m.seen[name] = &seen{pages: -1}
	m.last = nil
}

// takeElsewhere takes a page that came over a channel.
func (m *memory) takeElsewhere(rec *ram.Record) error {
	size, ok := m.sizes[rec.Block]
	if !ok || rec.Offset >= size {
		return fmt.Errorf("a page at %#x of block %q, which the main stream does not have", rec.Offset, rec.Block)
	}
	m.total.add(rec)
	return m.take(rec)
}

// take counts a page, and writes it to the file of its block if -extract-ram asks for that.
func (m *memory) take(rec *ram.Record) error {
	if m.last == nil || m.lastOf != rec.Block {
		m.last, m.lastOf = m.seen[rec.Block], rec.Block
		if m.last == nil && m.seen != nil {
			m.last = new(seen)
			m.seen[rec.Block] = m.last
		}
	}
	if m.last != nil && m.last.pages >= 0 && !m.last.add(rec.Offset/uint64(m.walker.Size()), &m.pieces) {
		m.unknown = true
	}
	if m.dir == "" {
		return nil
	}
	return m.write(rec)
}

// missing returns how many pages of a block never came, and how many it has.
func (m *memory) missing(name string) (missing, all int64) {
	size := uint64(m.walker.Size())
	all = int64((m.sizes[name] + size - 1) / size)
	switch s := m.seen[name]; {
	case m.unknown:
		return 0, all
	case s == nil:
		return all, all
	case s.pages < 0:
		return 0, all
	default:
		return max(all-s.pages, 0), all
	}
}

// blocks returns the names of the blocks: as listed, and then any others.
func (m *memory) blocks() []string {
	names := slices.Clone(m.list)
	var others []string
	for name := range m.total.Blocks {
		if _, ok := m.sizes[name]; !ok {
			others = append(others, name)
		}
	}
	slices.Sort(names)
	slices.Sort(others)
	return append(names, others...)
}

// fileName makes a file name of the name of a block, which a peer has chosen.
func fileName(block string) string { return url.PathEscape(block) + ".bin" }

func (m *memory) create(name string, size uint64) error {
	f := m.files[name]
	if f == nil {
		var err error
		// A guest's memory, keys and passwords in it, is for the user alone who has asked for it.
		if f, err = os.OpenFile(filepath.Join(m.dir, fileName(name)), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600); err != nil {
			return err
		}
		m.files[name] = f
	}
	return f.Truncate(int64(min(size, 1<<62)))
}

func (m *memory) write(rec *ram.Record) error {
	f := m.files[rec.Block]
	if f == nil {
		return errors.New("a page before the block list")
	}
	if rec.Kind == ram.KindPage {
		_, err := f.WriteAt(rec.Data, int64(rec.Offset))
		return err
	}
	m.page = slices.Grow(m.page[:0], m.walker.Size())[:m.walker.Size()]
	n, err := f.ReadAt(m.page, int64(rec.Offset))
	if err != nil && err != io.EOF {
		return err
	}
	clear(m.page[n:])
	if rec.Kind == ram.KindZero && rec.Fill == 0 && !slices.ContainsFunc(m.page, func(c byte) bool { return c != 0 }) {
		return nil // it stays a hole in the file
	}
	if err := rec.Apply(m.page); err != nil {
		return err
	}
	_, err = f.WriteAt(m.page, int64(rec.Offset))
	return err
}

func (m *memory) close() error {
	var errs []error
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(append(errs, m.channels.close())...)
}
