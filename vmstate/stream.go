package vmstate

import (
	"fmt"
	"slices"

	"github.com/gocolo/lockstep/qemufile"
)

// Magic and version of a stream (QEMU_VM_FILE_MAGIC, QEMU_VM_FILE_VERSION).
const (
	fileMagic   = 0x5145564d // "QEVM"
	fileVersion = 3
	fileV2      = 2
)

// PutFileHeader begins a stream: magic and version, 8 bytes.
func PutFileHeader(w *qemufile.Writer) {
	w.PutBE32(fileMagic)
	w.PutBE32(fileVersion)
}

// ReadFileHeader reads what [PutFileHeader] writes. Its error is [ErrMagic] or
// [ErrVersion]; version 2, which QEMU stopped reading long ago, is named in the
// text. An empty stream is io.EOF.
func ReadFileHeader(r *qemufile.Reader) error {
	start := r.Offset()
	magic := r.BE32()
	if err := r.Err(); err != nil {
		return &SectionError{Section: Header{Type: noSection}, Offset: start, Err: err} // io.EOF stays what it is
	}
	if magic != fileMagic {
		return streamError(start, fmt.Errorf("%w: magic %#08x, want %#08x", ErrMagic, magic, uint32(fileMagic)))
	}
	version := r.BE32()
	switch {
	case r.Err() != nil:
		return streamError(r.Offset(), r.Err())
	case version == fileV2:
		return streamError(start+4, fmt.Errorf("%w: stream version 2 is obsolete", ErrVersion))
	case version != fileVersion:
		return streamError(start+4, fmt.Errorf("%w: stream version %d, want %d", ErrVersion, version, fileVersion))
	}
	return nil
}

// A Configuration names the machine a stream comes from. The zero value of each
// optional part means that the stream does not have it.
type Configuration struct {
	Machine string // e.g. "pc-i440fx-7.2"; at most 1024 bytes are read
	// TargetPageBits is the size of the target's pages as a power of two; only
	// targets whose page size varies send it (never x86).
	TargetPageBits uint32
	// Capabilities are those both sides must agree on; nil and empty differ.
	// In practice: nothing or "x-ignore-shared".
	Capabilities []string
	// UUID of the guest, sent if it has one and validate-uuid is on.
	UUID *[16]byte
}

const (
	configPageBits     = "configuration/target-page-bits"
	configCapabilities = "configuration/capabilities"
	configUUID         = "configuration/uuid"

	maxMachineName  = 1024
	maxCapabilities = 256
)

// PutConfiguration writes the configuration section. The section has neither an id nor a
// footer nor an end: its reader has to look at the byte that follows.
func PutConfiguration(w *qemufile.Writer, c Configuration) {
	w.PutByte(byte(Configured))
	w.PutBE32(uint32(len(c.Machine)))
	w.WriteString(c.Machine)
	if c.TargetPageBits != 0 {
		putSubsection(w, configPageBits, 1)
		w.PutBE32(c.TargetPageBits)
	}
	if c.Capabilities != nil {
		putSubsection(w, configCapabilities, 1)
		w.PutBE32(uint32(len(c.Capabilities)))
		for _, name := range c.Capabilities {
			w.PutCountedString(name)
		}
	}
	if c.UUID != nil {
		putSubsection(w, configUUID, 1)
		w.Write(c.UUID[:])
	}
}

func putSubsection(w *qemufile.Writer, name string, version uint32) {
	w.PutByte(byte(Subsection))
	w.PutCountedString(name)
	w.PutBE32(version)
}

// ReadConfiguration reads what [PutConfiguration] writes. Its error is
// [ErrConfiguration] if the section is missing or malformed, and
// [ErrUnknownSubsection] or [ErrVersion] for a part we do not know; they come
// in the order above. Whether a stream has a configuration at all is not in the
// stream: very old machine types (send-configuration=off) have none.
//
// ReadConfiguration does not compare it with the local machine; [Configuration.Check] does.
func ReadConfiguration(r *qemufile.Reader) (Configuration, error) {
	start := r.Offset()
	c, err := readConfiguration(r)
	if err != nil {
		return Configuration{}, sectionError(Header{Type: Configured}, start, err)
	}
	return c, nil
}

func readConfiguration(r *qemufile.Reader) (c Configuration, err error) {
	if t := r.Byte(); r.Err() == nil && SectionType(t) != Configured {
		return c, fmt.Errorf("%w section is missing: got byte %#02x", ErrConfiguration, t)
	}
	c.Machine = string(r.Bytes(uint64(r.BE32()), maxMachineName))
	last := 0
	for r.Err() == nil {
		if t, ok := r.PeekByte(); !ok || SectionType(t) != Subsection {
			break
		}
		r.Byte()
		name, version := r.CountedString(), r.BE32()
		if r.Err() != nil {
			break
		}
		order := 1 + slices.Index([]string{configPageBits, configCapabilities, configUUID}, name)
		if order <= last {
			return c, fmt.Errorf("%w %q", ErrUnknownSubsection, name)
		}
		last = order
		if version != 1 {
			return c, fmt.Errorf("%s: %w %d", name, ErrVersion, version)
		}
		switch name {
		case configPageBits:
			c.TargetPageBits = r.BE32()
			if r.Err() == nil && (c.TargetPageBits == 0 || c.TargetPageBits > 31) {
				return c, fmt.Errorf("%w: %d target page bits", ErrConfiguration, c.TargetPageBits)
			}
		case configCapabilities:
			n := r.BE32()
			if n > maxCapabilities {
				return c, fmt.Errorf("%w: %d capabilities: %w", ErrConfiguration, n, ErrBounds)
			}
			c.Capabilities = []string{}
			for i := uint32(0); i < n && r.Err() == nil; i++ {
				c.Capabilities = append(c.Capabilities, r.CountedString())
			}
		case configUUID:
			c.UUID = new([16]byte)
			r.ReadFull(c.UUID[:])
		}
	}
	return c, r.Err()
}

// Check compares a received configuration with the local one as QEMU does and
// returns [ErrConfiguration] if they do not agree: the received machine name
// must be a prefix of the local one (so an empty one always agrees), page bits
// must match if received, a received capability must be one that QEMU knows,
// x-ignore-shared and mapped-ram must each be on at both sides or at none, and
// two UUIDs must be equal (one alone is accepted).
func (c Configuration) Check(local Configuration) error {
	if len(c.Machine) > len(local.Machine) || c.Machine != local.Machine[:len(c.Machine)] {
		return fmt.Errorf("%w: machine type %q, local is %q", ErrConfiguration, c.Machine, local.Machine)
	}
	if c.TargetPageBits != 0 && local.TargetPageBits != 0 && c.TargetPageBits != local.TargetPageBits {
		return fmt.Errorf("%w: %d target page bits, local has %d", ErrConfiguration, c.TargetPageBits, local.TargetPageBits)
	}
	for _, name := range c.Capabilities {
		if !knownCapability(name) {
			return fmt.Errorf("%w: unknown capability %q", ErrConfiguration, name)
		}
	}
	for _, validated := range [...]string{"x-ignore-shared", "mapped-ram"} {
		if got, have := slices.Contains(c.Capabilities, validated), slices.Contains(local.Capabilities, validated); got != have {
			return fmt.Errorf("%w: capability %s is %t, local has %t", ErrConfiguration, validated, got, have)
		}
	}
	if c.UUID != nil && local.UUID != nil && *c.UUID != *local.UUID {
		return fmt.Errorf("%w: uuid %x, local is %x", ErrConfiguration, *c.UUID, *local.UUID)
	}
	return nil
}

// knownCapability reports whether a version of QEMU from 7.2 on has a migration
// capability of that name (MigrationCapability in qapi/migration.json).
func knownCapability(name string) bool {
	switch name {
	case "xbzrle", "rdma-pin-all", "auto-converge", "zero-blocks", "compress", "events", "postcopy-ram", "x-colo",
		"release-ram", "block", "return-path", "pause-before-switchover", "multifd", "dirty-bitmaps", "postcopy-blocktime",
		"late-block-activate", "x-ignore-shared", "validate-uuid", "background-snapshot", "zero-copy-send",
		"postcopy-preempt", "switchover-ack", "dirty-limit", "mapped-ram":
		return true
	}
	return false
}

// maxDescription bounds a VM description where the caller gives no limit; those
// of full-featured machines have a few hundred KiB.
const maxDescription = 16 << 20

// PutDescription writes a VM description section around its JSON text.
func PutDescription(w *qemufile.Writer, text []byte) {
	w.PutByte(byte(Description))
	w.PutBE32(uint32(len(text)))
	w.Write(text)
}

// ReadVMDesc reads the VM description section after an EOF, at most max bytes of
// text (0: 16 MiB), and returns the JSON text. Its error is io.EOF if the stream
// ends before it, which to a destination is no failure, [ErrDescription] if
// something else is there, and [qemufile.ErrTooLong] beyond max.
func ReadVMDesc(r *qemufile.Reader, max uint64) ([]byte, error) {
	start := r.Offset()
	h := Header{Type: Description}
	if max == 0 {
		max = maxDescription
	}
	t := r.Byte()
	if err := r.Err(); err != nil {
		return nil, &SectionError{Section: h, Offset: start, Err: err} // io.EOF stays what it is
	}
	if SectionType(t) != Description {
		return nil, sectionError(h, start, fmt.Errorf("%w is missing: got byte %#02x", ErrDescription, t))
	}
	text := r.Bytes(uint64(r.BE32()), max)
	if err := r.Err(); err != nil {
		return nil, sectionError(h, start, err)
	}
	return text, nil
}
