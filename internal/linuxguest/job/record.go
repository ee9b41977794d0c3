package job

import (
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
)

// A Record is a line of the guest's report about itself.
type Record struct {
	Seq     uint64 // counts the records
	Counter uint64 // counts as fast as the guest can
	Pass    uint64 // of the Checksum, with its values
	Integer uint64
	Double  uint64
	Synced  uint64 // entries of the log on disk whose fsync has returned
	Chunks  uint64 // chunks that were asked for and sent
	Last    bool   // the guest ends after this one
}

const recordFormat = "report %d counter %d pass %d integer %016x double %016x synced %d chunks %d last %t"

// ErrRecord says that a line is no Record, or one whose checksum is wrong.
var ErrRecord = errors.New("job: not a record")

// AppendText appends the record's line, with its checksum and a newline.
func (r Record) AppendText(b []byte) ([]byte, error) {
	begin := len(b)
	b = fmt.Appendf(b, recordFormat, r.Seq, r.Counter, r.Pass, r.Integer, r.Double, r.Synced, r.Chunks, r.Last)
	return fmt.Appendf(b, " crc %08x\n", crc32.ChecksumIEEE(b[begin:])), nil
}

// UnmarshalText parses a line, with or without its newline.
func (r *Record) UnmarshalText(line []byte) error {
	text, sum, ok := strings.Cut(strings.TrimSuffix(string(line), "\n"), " crc ")
	if !ok || sum != fmt.Sprintf("%08x", crc32.ChecksumIEEE([]byte(text))) {
		return fmt.Errorf("%w: %q", ErrRecord, line)
	}
	if _, err := fmt.Sscanf(text, recordFormat, &r.Seq, &r.Counter, &r.Pass, &r.Integer, &r.Double, &r.Synced, &r.Chunks, &r.Last); err != nil {
		return fmt.Errorf("%w: %q: %w", ErrRecord, line, err)
	}
	return nil
}

// EntrySize is the length of an entry of the log on disk, in bytes: a sector.
const EntrySize = 512

// AppendEntry appends the n-th entry of the log on disk, which says of itself
// which one it is in its first bytes and everywhere.
func AppendEntry(b []byte, n uint64) []byte {
	begin := len(b)
	b = fmt.Appendf(b, "entry %d\n", n)
	return fill(b, begin+EntrySize, n)
}

// CheckEntry reports whether p is the n-th entry, and all of it.
func CheckEntry(p []byte, n uint64) bool { return string(p) == string(AppendEntry(nil, n)) }

// ChunkSize is the length of a chunk, in bytes.
const ChunkSize = 600

// AppendChunk appends the n-th chunk of the stream that is known beforehand.
func AppendChunk(b []byte, n uint64) []byte {
	begin := len(b)
	b = fmt.Appendf(b, "chunk %d\n", n)
	return fill(b, begin+ChunkSize, ^n)
}

// fill appends printable bytes that follow from seed up to length n.
func fill(b []byte, n int, seed uint64) []byte {
	for len(b) < n {
		seed = step(seed)
		b = append(b, 'a'+byte(seed>>59)%26)
	}
	return b
}
