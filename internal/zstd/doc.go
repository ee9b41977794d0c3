// Package zstd decompresses Zstandard (RFC 8878), piece by piece: as much as the
// channels of a migration need, which send one frame that is flushed at the end of
// each packet and never ended. There are no dictionaries, and content checksums
// are skipped.
package zstd
