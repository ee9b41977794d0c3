package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"
)

// answered returns a client that has negotiated two contexts, of ids 7 and 9,
// and whose server says what is in said.
func answered(said []byte) *Client {
	conn := answers{Reader: bytes.NewReader(said)}
	cfg := ClientConfig{MaxRequests: 2}
	cfg.setDefaults()
	return newClient(&dialogue{
		conn: conn, r: newReader(conn), structured: true, contexts: []clientContext{{ContextAllocation, 7}, {ContextDirty, 9}},
	}, Info{Size: 1 << 20, MinBlock: 1, MaxBlock: 1 << 20, Flush: true}, cfg)
}

const firstHandle = 1 << 32 // of the first request of a client

// say appends a chunk of a type, with flags, that has a payload.
func say(p []byte, flags, typ uint16, payload ...[]byte) []byte {
	all := slices.Concat(payload...)
	c := chunk{flags, typ, firstHandle, uint32(len(all))}
	return append(c.append(p), all...)
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v ...uint32) (p []byte) {
	for _, x := range v {
		p = binary.BigEndian.AppendUint32(p, x)
	}
	return p
}
func be64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func TestAnswersInChunks(t *testing.T) {
	whole := say(nil, chunkDone, chunkData, be64(100), []byte("0123456789"))
	for name, tc := range map[string]struct {
		said []byte
		want string
		err  error // nil and no want: a *ProtocolError
	}{
		"one":                       {whole, "0123456789", nil},
		"an unknown flag":           {say(nil, chunkDone|1<<9, chunkData, be64(100), []byte("0123456789")), "0123456789", nil},
		"two, back to front":        {say(say(nil, 0, chunkData, be64(105), []byte("56789")), chunkDone, chunkData, be64(100), []byte("01234")), "0123456789", nil},
		"a hole":                    {say(say(say(nil, 0, chunkData, be64(100), []byte("01234")), 0, chunkHole, be64(105), be32(5)), chunkDone, chunkNone), "01234\x00\x00\x00\x00\x00", nil},
		"an error":                  {say(nil, chunkDone, chunkError, be32(28), be16(2), []byte("no")), "", syscall.ENOSPC},
		"an error with its place":   {say(say(nil, 0, chunkErrorOffset, be32(5), be16(0), be64(104)), chunkDone, chunkNone), "", syscall.EIO},
		"data and an error":         {say(say(nil, 0, chunkData, be64(100), []byte("01234")), chunkDone, chunkError, be32(22), be16(0)), "", syscall.EINVAL},
		"two errors: the first":     {say(say(nil, 0, chunkError, be32(28), be16(0)), chunkDone, chunkError, be32(5), be16(0)), "", syscall.ENOSPC},
		"an error of a new kind":    {say(nil, chunkDone, chunkErr|77, be32(12), be16(0), []byte("more")), "", syscall.ENOMEM},
		"a simple error":            {appendReply(nil, 28, firstHandle), "", syscall.ENOSPC},
		"a simple success":          {append(appendReply(nil, 0, firstHandle), "0123456789"...), "", nil},
		"too little":                {say(nil, chunkDone, chunkData, be64(100), []byte("01234")), "", nil},
		"nothing":                   {say(nil, chunkDone, chunkNone), "", nil},
		"too much":                  {say(nil, chunkDone, chunkData, be64(100), []byte("0123456789a")), "", nil},
		"twice the same":            {say(say(nil, 0, chunkData, be64(100), []byte("012345")), chunkDone, chunkData, be64(100), []byte("012345")), "", nil},
		"twice, of the right sum":   {say(say(nil, 0, chunkData, be64(100), []byte("01234")), chunkDone, chunkData, be64(100), []byte("01234")), "", nil},
		"over the end of another":   {say(say(nil, 0, chunkData, be64(102), []byte("234")), chunkDone, chunkData, be64(100), []byte("012")), "", nil},
		"over the next but one":     {say(say(say(nil, 0, chunkData, be64(100), []byte("0")), 0, chunkHole, be64(104), be32(1)), chunkDone, chunkData, be64(101), []byte("123456789")), "", nil},
		"the same, right sum":       {say(say(say(say(nil, 0, chunkData, be64(100), []byte("0")), 0, chunkHole, be64(104), be32(1)), 0, chunkData, be64(101), []byte("12345")), chunkDone, chunkData, be64(106), []byte("678")), "", nil},
		"many, between each other":  {say(say(say(say(nil, 0, chunkData, be64(100), []byte("01")), 0, chunkData, be64(108), []byte("89")), 0, chunkData, be64(104), []byte("45")), chunkDone, chunkData, be64(106), []byte("67")), "", nil},
		"all, between each other":   {say(say(say(say(nil, 0, chunkData, be64(102), []byte("23")), 0, chunkData, be64(108), []byte("89")), 0, chunkData, be64(104), []byte("4567")), chunkDone, chunkData, be64(100), []byte("01")), "0123456789", nil},
		"before":                    {say(nil, chunkDone, chunkData, be64(99), []byte("0123456789")), "", nil},
		"far beyond":                {say(nil, chunkDone, chunkData, be64(1<<64-1), []byte("0")), "", nil},
		"a hole beyond":             {say(nil, chunkDone, chunkHole, be64(100), be32(1<<32-1)), "", nil},
		"an empty hole":             {say(nil, 0, chunkHole, be64(100), be32(0)), "", nil},
		"a hole of no length":       {say(nil, 0, chunkHole, be64(100)), "", nil},
		"empty data":                {say(nil, 0, chunkData, be64(100)), "", nil},
		"data of no place":          {say(nil, 0, chunkData, be32(100)), "", nil},
		"nothing, to be continued":  {say(nil, 0, chunkNone), "", nil},
		"nothing, with something":   {say(nil, chunkDone, chunkNone, be32(1)), "", nil},
		"block status":              {say(nil, chunkDone, chunkStatus, be32(7, 10, 0)), "", nil},
		"a new kind":                {say(nil, chunkDone, 77, be32(1)), "", nil},
		"an error that is none":     {say(nil, chunkDone, chunkError, be32(0), be16(0)), "", nil},
		"a short error":             {say(nil, chunkDone, chunkError, be32(5)), "", nil},
		"an error message beyond":   {say(nil, chunkDone, chunkError, be32(5), be16(9), []byte("no")), "", nil},
		"an error without end":      {(&chunk{chunkDone, chunkError, firstHandle, 1 << 31}).append(nil), "", nil},
		"errors without end":        {bytes.Repeat(say(nil, 0, chunkError, be32(5), be16(0)), 1000), "", nil},
		"of another request":        {(&chunk{chunkDone, chunkNone, firstHandle + 1, 0}).append(nil), "", nil},
		"after the end, of nothing": {append(say(nil, chunkDone, chunkNone), whole...), "", nil},
		"cut short in the header":   {whole[:18], "", io.ErrUnexpectedEOF},
		"cut short in the place":    {whole[:24], "", io.ErrUnexpectedEOF},
		"cut short in the data":     {whole[:33], "", io.ErrUnexpectedEOF},
		"cut short between":         {say(nil, 0, chunkData, be64(100), []byte("01234")), "", io.ErrUnexpectedEOF},
	} {
		c := answered(tc.said)
		p := []byte("xxxxxxxxxx")
		_, err := c.ReadAt(p, 100)
		var pe *ProtocolError
		switch {
		case tc.want != "":
			if err != nil || string(p) != tc.want {
				t.Errorf("%s: %q, %v", name, p, err)
			}
		case tc.err != nil:
			if !errors.Is(err, tc.err) {
				t.Errorf("%s: %v, want %v", name, err, tc.err)
			}
		case !errors.As(err, &pe):
			t.Errorf("%s: %v, want a protocol violation", name, err)
		}
		if lost := c.Err() != nil; lost == (tc.want != "" || errors.As(err, new(*RequestError))) {
			t.Errorf("%s: the connection ends with %v", name, c.Err())
		}
		c.Close()
	}
}

// What an error chunk has said of a request, no simple reply takes back.
func TestASimpleReplyAfterAnErrorChunkEndsTheConnection(t *testing.T) {
	for _, errno := range []uint32{0, 5} {
		failed := say(nil, 0, chunkError, be32(28), be16(0))
		c := answered(append(failed, appendReply(nil, errno, firstHandle)...))
		_, err := c.WriteAt([]byte("data"), 0)
		var pe *ProtocolError
		if !errors.As(err, &pe) || c.Err() == nil {
			t.Errorf("errno %d: write %v, connection %v", errno, err, c.Err())
		}
		c.Close()
	}
}

// Texts of errors end up in logs, and a peer may make them as long as it likes.
func TestTextsOfErrorsAreShortAndOfWholeRunes(t *testing.T) {
	for in, want := range map[string]string{
		"no room":                                "no room",
		strings.Repeat("x", maxMessage):          strings.Repeat("x", maxMessage),
		strings.Repeat("x", 9000):                strings.Repeat("x", maxMessage),
		strings.Repeat("x", maxMessage-1) + "éé": strings.Repeat("x", maxMessage-1),
		strings.Repeat("x", maxMessage-2) + "éé": strings.Repeat("x", maxMessage-2) + "é",
		strings.Repeat("\x80", 9000):             strings.Repeat("\x80", maxMessage-utf8.UTFMax), // no rune
	} {
		c := answered(say(nil, chunkDone, chunkError, be32(28), be16(uint16(len(in))), []byte(in)))
		_, err := c.ReadAt(make([]byte, 10), 100)
		var re *RequestError
		if !errors.As(err, &re) || re.Message != want {
			t.Errorf("%.10q, of %d bytes: %v", in, len(in), err)
		}
		c.Close()
		p := appendError(nil, firstHandle, errors.New(in))
		if string(p[chunkLen+6:]) != want {
			t.Errorf("%.10q, of %d bytes, is sent as %d bytes", in, len(in), len(p)-chunkLen-6)
		}
		p = appendOptReply(nil, optStructured, repErrPolicy, []byte(in))
		d := dialogue{r: newReader(bytes.NewReader(p))}
		_, _, err = d.reply(optStructured)
		var oe *OptionError
		if !errors.As(err, &oe) || oe.Message != want {
			t.Errorf("%.10q, of %d bytes, as the words of an option: %v", in, len(in), err)
		}
	}
}

func appendOptReply(p []byte, opt, typ uint32, data []byte) []byte {
	p = append(p, be64(magicOptReply)...)
	p = append(p, be32(opt, typ, uint32(len(data)))...)
	return append(p, data...)
}

func TestErrorsOfAServerHaveItsWords(t *testing.T) {
	c := answered(say(nil, chunkDone, chunkError, be32(28), be16(7), []byte("no room")))
	defer c.Close()
	_, err := c.ReadAt(make([]byte, 10), 100)
	if want := `nbd: read of 10 bytes at 100: no space left on device: "no room"`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestAnswersToBlockStatus(t *testing.T) {
	for name, tc := range map[string]struct {
		said []byte
		want []extent // nil: a *ProtocolError, or end
		end  error
	}{
		"all of it":               {say(nil, chunkDone, chunkStatus, be32(7, 600, 3, 400, 0)), []extent{{600, 3}, {400, 0}}, nil},
		"with another context":    {say(say(nil, 0, chunkStatus, be32(9, 1000, 1)), chunkDone, chunkStatus, be32(7, 1000, 2)), []extent{{1000, 2}}, nil},
		"longer than asked":       {say(nil, chunkDone, chunkStatus, be32(7, 600, 3, 1<<31, 0, 5, 5)), []extent{{600, 3}, {400, 0}}, nil},
		"less than asked":         {say(nil, chunkDone, chunkStatus, be32(7, 600, 3)), nil, io.ErrUnexpectedEOF}, // the client asks on
		"an error":                {say(nil, chunkDone, chunkError, be32(22), be16(0)), nil, syscall.EINVAL},
		"simple":                  {appendReply(nil, 0, firstHandle), nil, nil},
		"only another context":    {say(nil, chunkDone, chunkStatus, be32(9, 1000, 1)), nil, nil},
		"of a context not wanted": {say(nil, 0, chunkStatus, be32(8, 1000, 1)), nil, nil},
		"twice":                   {say(say(nil, 0, chunkStatus, be32(7, 1000, 1)), chunkDone, chunkStatus, be32(7, 1000, 1)), nil, nil},
		"of nothing":              {say(nil, chunkDone, chunkNone), nil, nil},
		"without extents":         {say(nil, chunkDone, chunkStatus, be32(7)), nil, nil},
		"an empty extent":         {say(nil, chunkDone, chunkStatus, be32(7, 0, 0)), nil, nil},
		"half an extent":          {say(nil, chunkDone, chunkStatus, be32(7, 1000)), nil, nil},
		"data":                    {say(nil, chunkDone, chunkData, be64(0), be32(1)), nil, nil},
		"without end":             {(&chunk{chunkDone, chunkStatus, firstHandle, 1<<32 - 4}).append(nil), nil, nil},
		"that does not come":      {append((&chunk{chunkDone, chunkStatus, firstHandle, 4 + 8<<20}).append(nil), be32(7, 1, 0)...), nil, io.ErrUnexpectedEOF},
	} {
		c := answered(tc.said)
		var got []extent
		err := c.Extents(0, 1000, func(n int64, flags uint32) bool {
			got = append(got, extent{uint32(n), flags})
			return true
		})
		var pe *ProtocolError
		switch {
		case tc.want != nil:
			if err != nil || !slices.Equal(got, tc.want) {
				t.Errorf("%s: %v, %v, want %v", name, got, err, tc.want)
			}
		case tc.end != nil:
			if !errors.Is(err, tc.end) {
				t.Errorf("%s: %v, want %v", name, err, tc.end)
			}
		case !errors.As(err, &pe):
			t.Errorf("%s: %v, want a protocol violation", name, err)
		}
		c.Close()
	}
}

// FuzzChunks has a server answer a read and a question for extents by chunks
// that are made, mostly well, after the bytes of the input.
func FuzzChunks(f *testing.F) {
	f.Add([]byte{0, 0, 8, 0, 8, 8, 1})
	f.Add([]byte{1, 0, 4, 0, 4, 12, 1})
	f.Add([]byte{2, 28, 0, 3, 1})
	f.Add([]byte{4, 0, 3, 4, 1, 9, 3, 1})
	f.Add([]byte{5, 200, 6, 9, 7, 1, 1})
	f.Fuzz(func(t *testing.T, in []byte) {
		next := func() (b byte) {
			if len(in) > 0 {
				b, in = in[0], in[1:]
			}
			return b
		}
		var said []byte
		var model [16]byte // what a read has to return, if it is to succeed
		over := false      // the answer; the rest is noise
		for i := 0; len(in) > 0; i++ {
			kind, flags := next(), uint16(0)
			if kind&0x80 != 0 || len(in) < 3 {
				flags = chunkDone
			}
			switch kind % 8 {
			case 0, 6:
				off, n := next()%16, next()%17
				data := bytes.Repeat([]byte{byte(i + 1)}, int(n))
				said = say(said, flags, chunkData, be64(100+uint64(off)), data)
				if !over {
					copy(model[off:], data)
				}
			case 1:
				off, n := next()%16, next()%17
				said = say(said, flags, chunkHole, be64(100+uint64(off)), be32(uint32(n)))
				if !over {
					clear(model[off:min(int(off)+int(n), 16)])
				}
			case 2:
				text := make([]byte, next()%4)
				said = say(said, flags, chunkError, be32(uint32(next())), be16(uint16(len(text))), text)
			case 3:
				flags = chunkDone
				said = say(said, flags, chunkNone)
			case 4:
				said = say(said, flags, chunkStatus, be32(7+uint32(next()%3), uint32(next())<<(next()%25), uint32(next())))
			case 5:
				said = (&chunk{flags, uint16(next()), firstHandle, uint32(next()) << (next() % 25)}).append(said)
			case 7:
				flags = chunkDone
				said = appendReply(said, uint32(next()%2)*28, firstHandle)
			}
			over = over || flags&chunkDone != 0
		}
		c := answered(said)
		p := bytes.Repeat([]byte{0xee}, 18) // what is not the read's is left alone
		if _, err := c.ReadAt(p[1:17:17], 100); err == nil && !bytes.Equal(p[1:17], model[:]) {
			t.Errorf("read %x, want %x", p[1:17], model)
		}
		if p[0] != 0xee || p[17] != 0xee {
			t.Error("written outside of the read")
		}
		c.Close()
		c = answered(said)
		pos := int64(0)
		err := c.Extents(0, 1<<20, func(n int64, _ uint32) bool {
			pos += n
			return n > 0
		})
		if pos > 1<<20 || err == nil && pos != 1<<20 {
			t.Errorf("extents end at %d: %v", pos, err)
		}
		c.Close()
	})
}

func FuzzMetaQuery(f *testing.F) {
	f.Add((&metaQuery{"d", []string{ContextAllocation, "base:"}}).append(nil))
	f.Add((&metaQuery{"", nil}).append(nil))
	f.Add(be32(0, 1<<32-1, 0))
	f.Fuzz(func(t *testing.T, p []byte) {
		var q metaQuery
		if q.parse(p) && !bytes.Equal(q.append(nil), p) {
			t.Errorf("%q is not %q", q.append(nil), p)
		}
	})
}
