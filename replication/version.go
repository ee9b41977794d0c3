package replication

import (
	"bytes"
	"fmt"
	"strings"
)

// ofAnotherVersion returns an error that matches ErrCorrupt if a block begins as the magic
// does, but for the version at its end: another version of this library has written it.
func ofAnotherVersion(what, magic string, block []byte) error {
	name, own := versioned([]byte(magic))
	if other, there := versioned(block); other == name && there != own {
		return fmt.Errorf("%w: %s of version %s, written by another version of this library: this one has version %s", ErrCorrupt, what, there, own)
	}
	return nil
}

// versioned splits the line with which a block begins into a name and a version, of up to
// four digits. Both are "" where it does not begin so.
func versioned(block []byte) (name, version string) {
	line, _, ok := bytes.Cut(block[:min(len(block), 32)], []byte("\n"))
	at := bytes.LastIndexByte(line, ' ') + 1
	version = string(line[at:])
	if !ok || at == 0 || version == "" || len(version) > 4 || strings.Trim(version, "0123456789") != "" {
		return "", ""
	}
	return string(line[:at]), version
}
