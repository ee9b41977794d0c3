package main

import (
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate/ram"
)

// counts are the pages of a section or of a stream.
type counts struct {
	Pages  int64             `json:"pages"` // of every kind
	Zero   int64             `json:"zero"`
	XBZRLE int64             `json:"xbzrle"`
	Blocks map[string]*block `json:"blocks"`
}

type block struct {
	Bytes  int64 `json:"bytes"` // in the stream
	Pages  int64 `json:"pages"`
	Zero   int64 `json:"zero"`
	XBZRLE int64 `json:"-"`
}

func (c *counts) add(rec *ram.Record) {
	if !rec.Page() {
		return
	}
	b := c.Blocks[rec.Block]
	if b == nil {
		if c.Blocks == nil {
			c.Blocks = make(map[string]*block)
		}
		b = new(block)
		c.Blocks[rec.Block] = b
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
	walker ram.Walker
	dir    string // where to extract to; empty: nowhere
	total  counts
	sizes  map[string]uint64
	files  map[string]*os.File // sparse where no page came
	page   [ram.PageSize]byte
}

// maxBlocks bounds the blocks of a stream that does not list them first.
const maxBlocks = 1 << 12

// section reads the body of one section, up to its footer, and calls fn for each
// record.
func (m *memory) section(r *qemufile.Reader, fn func(*ram.Record)) (counts, error) {
	c := counts{Blocks: make(map[string]*block)}
	err := m.walker.Walk(r, func(rec *ram.Record) error {
		c.add(rec)
		m.total.add(rec)
		if len(m.total.Blocks) > maxBlocks {
			return fmt.Errorf("offset %d: pages of more than %d blocks", rec.Stream, maxBlocks)
		}
		if rec.Kind == ram.KindBlockList {
			if err := m.list(rec.Blocks); err != nil {
				return err
			}
		}
		fn(rec)
		if m.dir != "" && rec.Page() {
			return m.write(rec)
		}
		return nil
	})
	return c, err
}

func (m *memory) list(blocks []ram.BlockInfo) error {
	if m.sizes == nil {
		m.sizes = make(map[string]uint64)
		m.files = make(map[string]*os.File)
	}
	for _, b := range blocks {
		m.sizes[b.Name] = b.Length
		if m.dir == "" {
			continue
		}
		if err := m.create(b.Name, b.Length); err != nil {
			return err
		}
	}
	return nil
}

// fileName is a block's name as a file's: a peer has chosen it.
func fileName(block string) string { return url.PathEscape(block) + ".bin" }

func (m *memory) create(name string, size uint64) error {
	f := m.files[name]
	if f == nil {
		var err error
		if f, err = os.Create(filepath.Join(m.dir, fileName(name))); err != nil {
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
	n, err := f.ReadAt(m.page[:], int64(rec.Offset))
	if err != nil && err != io.EOF {
		return err
	}
	clear(m.page[n:])
	if rec.Kind == ram.KindZero && rec.Fill == 0 && m.page == [ram.PageSize]byte{} {
		return nil // and stays a hole
	}
	if err := rec.Apply(m.page[:]); err != nil {
		return err
	}
	_, err = f.WriteAt(m.page[:], int64(rec.Offset))
	return err
}

func (m *memory) close() error {
	var errs []error
	for _, f := range m.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}
