package main

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/gocolo/lockstep/qemufile"
	"github.com/gocolo/lockstep/vmstate"
)

// An input is a stream without a compression around it.
type input struct {
	r        io.Reader
	pageSize int64  // as the description of a seekable file says; 0: unknown
	note     string // what the stream was wrapped in, in words
}

// wrappers are files that a stream may be in, by how they begin. One with a
// reader is unpacked here, the others by the command.
var wrappers = []struct {
	magic, name, say string
	unpack           func(*bufio.Reader) (io.Reader, error)
}{
	{"\x1f\x8b", "gzip", "", unzip},
	{"BZh", "bzip2", "", func(r *bufio.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"\x28\xb5\x2f\xfd", "zstd", "unpack it: zstd -dc FILE | streamdump -", nil},
	{"\xfd7zXZ\x00", "xz", "unpack it: xz -dc FILE | streamdump -", nil},
	{"\x89LZO\x00\r\n\x1a\n", "lzop", "unpack it: lzop -dc FILE | streamdump -", nil},
	{"\x04\x22\x4d\x18", "lz4", "unpack it: lz4 -dc FILE | streamdump -", nil},
	{"QFI\xfb", "qcow2", "a disk image: a state that savevm left in it is loaded with -loadvm, and then migrated to a file", nil},
	{"VMA\x00", "VMA", "an archive of Proxmox VE: unpack it: vma extract FILE DIR", nil},
	{"\x11\x22\x33\x44", "multifd channel", "give it with -channel, and its main stream as FILE", nil},
	{"\x7fELF", "ELF", "a memory dump is no migration stream", nil},
	{"KDUMP   ", "kdump", "a memory dump is no migration stream", nil},
}

// unzip unpacks what gzip has packed.
func unzip(r *bufio.Reader) (io.Reader, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	z.Multistream(false)
	return readerFunc(func(p []byte) (int, error) {
		for {
			n, err := z.Read(p)
			if err != io.EOF {
				return n, err
			}
			if n > 0 {
				return n, nil // and the end once more
			}
			// Another file of gzip may follow, or zeros, as they do where it is written in blocks.
			for {
				c, err := r.ReadByte()
				if err != nil {
					return 0, err
				}
				if c != 0 {
					break
				}
			}
			if err := errors.Join(r.UnreadByte(), z.Reset(r)); err != nil {
				return 0, err
			}
			z.Multistream(false)
		}
	}), nil
}

// open takes gzip and the like from around a stream, and looks at the end of a
// seekable file for the size of its pages.
func open(in io.Reader) (input, error) {
	if f, ok := in.(*os.File); ok {
		if at, err := f.Seek(0, io.SeekCurrent); err == nil {
			var head [16]byte
			n, _ := f.ReadAt(head[:], at)
			if i := wrapper(head[:n]); i < 0 {
				return input{r: f, pageSize: pageSizeOf(f)}, nil
			}
		}
	}
	b := bufio.NewReader(in)
	head, _ := b.Peek(16)
	i := wrapper(head)
	if i < 0 {
		return input{r: b}, nil
	}
	w := wrappers[i]
	if w.unpack == nil {
		return input{}, fmt.Errorf("offset 0: %w but %s: %s", vmstate.ErrMagic, w.name, w.say)
	}
	r, err := w.unpack(b)
	if err != nil {
		return input{}, fmt.Errorf("offset 0: %s: %w", w.name, err)
	}
	return input{r: r, note: fmt.Sprintf("the input is %s; offsets are those of what is in it", w.name)}, nil
}

// inWords says where the input ends, if err is that it does. r has read it; nil: nobody has.
func inWords(err error, r *qemufile.Reader) error {
	switch {
	case errors.Is(err, io.EOF):
		return errors.New("offset 0: the input is empty")
	case errors.Is(err, io.ErrUnexpectedEOF) && r != nil && (errors.Is(r.Err(), io.ErrUnexpectedEOF) || errors.Is(r.Err(), io.EOF)):
		return fmt.Errorf("%w: the input ends at offset %d, and at least a byte more belongs there: it was cut off, or is still being written", err, r.Offset()+int64(r.Buffered()))
	}
	return err
}

// wrapper returns which of wrappers begins with head, or -1.
func wrapper(head []byte) int {
	for i, w := range wrappers {
		if bytes.HasPrefix(head, []byte(w.magic)) {
			return i
		}
	}
	return -1
}

// maxDescription bounds a stream's description, in bytes.
const maxDescription = 16 << 20

// description returns the text of the description at the end of a file, where
// zeros may follow it; nil if there is none.
func description(f io.ReaderAt, size int64) []byte {
	for n := int64(128 << 10); ; n *= 8 {
		n = min(n, size, maxDescription+1<<16)
		p := make([]byte, n)
		if _, err := f.ReadAt(p, size-n); err != nil && err != io.EOF {
			return nil
		}
		p = bytes.TrimRight(p, "\x00")
		if len(p) == 0 || p[len(p)-1] != '}' {
			return nil
		}
		for at := 0; at+7 <= len(p); at++ {
			i := bytes.IndexByte(p[at:], byte(vmstate.Description))
			if i < 0 || at+i+7 > len(p) {
				break
			}
			at += i
			if int64(binary.BigEndian.Uint32(p[at+1:])) == int64(len(p)-at-5) && p[at+5] == '{' {
				return p[at+5:]
			}
		}
		if n == size || n > maxDescription {
			return nil
		}
	}
}

// pageSizeOf returns the size of the target's pages that the description at the
// end of a file tells, or 0.
func pageSizeOf(f *os.File) int64 {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return 0
	}
	text := description(f, st.Size())
	const key = `"page_size": `
	i := bytes.Index(text, []byte(key))
	if i < 0 {
		return 0
	}
	var n int64
	for _, c := range text[i+len(key) : min(len(text), i+len(key)+8)] {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + int64(c-'0')
	}
	if !validPageSize(n) {
		return 0
	}
	return n
}

// validPageSize reports whether the pages of some target have n bytes.
func validPageSize(n int64) bool { return n >= 256 && n <= 64<<10 && n&(n-1) == 0 }

// A libvirt image begins with a header of 92 bytes, in the byte order of its
// host: magic, version, length of what follows up to the stream, whether the
// guest ran, compression, offset of the cookie, unused.
const (
	libvirtMagic   = "LibvirtQemudSave"
	libvirtPartial = "LibvirtQemudPart"
	libvirtHeader  = 16 + 19*4
	maxLibvirt     = 2 << 20 // of XML, cookie and padding
)

var libvirtKinds = []string{"raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"}

// libvirt is the header of an image of libvirt, before the stream.
type libvirt struct {
	Version    uint32 `json:"version"`
	Running    bool   `json:"was-running"`
	Kind       string `json:"compression"`
	XML        string `json:"xml"`
	Cookie     string `json:"cookie,omitempty"`
	compressed bool
	length     int64
}

// readLibvirt reads the header of an image of libvirt and its XML, if r has one.
func readLibvirt(r *qemufile.Reader) (*libvirt, error) {
	switch head := string(r.Peek(len(libvirtMagic))); head {
	case libvirtMagic:
	case libvirtPartial:
		return nil, errors.New("offset 0: a libvirt image that was never finished: the host went down, or ran out of space, while it saved")
	default:
		return nil, nil
	}
	h := r.Next(libvirtHeader)
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("libvirt image: %w", qemufile.NoEOF(err))
	}
	word := func(i int) uint32 { return binary.LittleEndian.Uint32(h[16+4*i:]) }
	if word(0) > 0xffff { // written by a host of the other byte order
		word = func(i int) uint32 { return binary.BigEndian.Uint32(h[16+4*i:]) }
	}
	l := &libvirt{Version: word(0), Running: word(2) != 0, Kind: fmt.Sprintf("unknown (%d)", word(3))}
	n, kind, cookie := word(1), word(3), word(4)
	if int(kind) < len(libvirtKinds) {
		l.Kind = libvirtKinds[kind]
	}
	l.compressed = kind != 0 && l.Kind != "sparse"
	data := r.Bytes(uint64(n), maxLibvirt)
	if err := r.Err(); err != nil {
		return nil, fmt.Errorf("libvirt image: %w", qemufile.NoEOF(err))
	}
	l.length = r.Offset()
	if cookie > 0 && int64(cookie) < int64(len(data)) {
		text, _, _ := bytes.Cut(data[cookie:], []byte{0})
		l.Cookie, data = string(text), data[:cookie]
	}
	text, _, _ := bytes.Cut(data, []byte{0})
	l.XML = string(text)
	return l, nil
}

// open returns the stream behind the header, where it is compressed.
func (l *libvirt) open(r *qemufile.Reader) (io.Reader, error) {
	rest := bufio.NewReader(readerFunc(func(p []byte) (int, error) {
		if _, ok := r.PeekByte(); !ok {
			return 0, cmp.Or(r.Failure(), io.EOF)
		}
		return copy(p, r.Next(min(len(p), r.Buffered()))), nil
	}))
	for _, w := range wrappers {
		if w.name == l.Kind && w.unpack != nil {
			in, err := w.unpack(rest)
			if err != nil {
				return nil, fmt.Errorf("libvirt image: %s: %w", w.name, err)
			}
			return in, nil
		}
	}
	return nil, fmt.Errorf("a libvirt image compressed with %s: unpack it: tail -c +%d FILE | %s -dc | streamdump -", l.Kind, l.length+1, l.Kind)
}

// readerFunc is an io.Reader that is a function.
type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
