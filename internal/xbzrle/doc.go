// Package xbzrle encodes a page as its difference to an earlier state of the
// same page, and applies such a difference.
//
// A delta is a list of pairs: how many bytes stay as they were, how many
// differ, and the new values of those that differ. Both lengths are ULEB128
// numbers of at most 14 bits (two bytes). What stays at the end of the page is
// not written, so the delta of two equal pages is empty. The format is the one
// of QEMU's xbzrle capability (docs/devel/migration, migration/xbzrle.c), byte
// for byte: runs are maximal, and the bytes written are the new ones, not the
// exclusive or.
//
// [Cache] keeps, on the side that encodes, the pages as the peer has them. It
// is right only as long as it holds exactly what was last sent for each page;
// the way to keep it so is to apply the delta that was sent to the cached page
// with [Decode], the way the peer does.
package xbzrle
