package nbd

import (
	"encoding/binary"
	"unicode/utf8"
)

// Structured replies (proto, "Structured reply chunk message"): an answer is sent in
// chunks, each with a type. So a read can fail in the middle, and an answer can have
// contents of several kinds.
const (
	magicChunk = 0x668e33ef
	chunkLen   = 20 // header of a chunk

	chunkDone = 1 << 0 // flag of the last chunk of an answer

	chunkNone        = 0
	chunkData        = 1
	chunkHole        = 2
	chunkStatus      = 5
	chunkErr         = 1 << 15 // set in the types that are errors
	chunkError       = chunkErr | 1
	chunkErrorOffset = chunkErr | 2

	extentLen = 8 // of one extent in a chunkStatus
)

// chunk is the header of a chunk.
type chunk struct {
	flags, typ uint16
	handle     uint64
	n          uint32 // the length of the payload
}

func (c *chunk) append(p []byte) []byte {
	be := binary.BigEndian
	p = be.AppendUint32(p, magicChunk)
	p = be.AppendUint16(p, c.flags)
	p = be.AppendUint16(p, c.typ)
	p = be.AppendUint64(p, c.handle)
	return be.AppendUint32(p, c.n)
}

// parse reads the header in p, of chunkLen bytes, after its magic.
func (c *chunk) parse(p []byte) {
	be := binary.BigEndian
	*c = chunk{be.Uint16(p[4:]), be.Uint16(p[6:]), be.Uint64(p[8:]), be.Uint32(p[16:])}
}

const maxMessage = 512 // the length of an error's text, in bytes

// words returns the text of an error, cut to maxMessage: it ends up in logs, and a server may have
// sent kilobytes. A rune is not cut in two.
func words[T string | []byte](text T) string {
	if len(text) <= maxMessage {
		return string(text)
	}
	n := maxMessage
	for n > maxMessage-utf8.UTFMax && !utf8.RuneStart(text[n]) {
		n--
	}
	return string(text[:n])
}

// appendError appends an answer that is one error chunk.
func appendError(p []byte, handle uint64, err error) []byte {
	text := words(err.Error())
	c := chunk{chunkDone, chunkError, handle, uint32(6 + len(text))}
	p = c.append(p)
	p = binary.BigEndian.AppendUint32(p, toErrno(err))
	p = binary.BigEndian.AppendUint16(p, uint16(len(text)))
	return append(p, text...)
}
