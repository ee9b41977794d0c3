// Package multifd reads and writes the packets in which QEMU's multifd
// capability carries guest memory over connections of their own.
//
// A migration with multifd has a main stream, with a ram section of block list
// and barriers but (as a rule) no pages, and some channels. A channel begins
// with an [Init], which tells it from a main stream by its magic, and goes on
// with packets: a header with the block's name and the offsets of up to 128
// pages, then the contents of those that are not zero. A packet with Sync set
// ends what a section (QEMU up to 8.0) or a round (8.1 and later, announced by
// MULTIFD_FLUSH in the main stream) has sent on this channel.
//
// The format is that of migration/multifd.h: version 1, the same from QEMU 4.0
// on. QEMU 9.0 added pages that are zero (before, those went over the main
// stream), and 10.0 packets of device state; an older receiver must be sent
// neither. Pages may be compressed, all of a packet together in a stream that
// goes on from packet to packet: such packets are recognised and carried.
// [Reader.Pages] decompresses zlib, and anything else for which the caller has a
// [Decoder].
//
// This package only encodes and decodes packets. Package migrate drives the channels of a
// plain migration, package colo those of a COLO session. SendPagesTo makes a [ram.Saver]
// hand its pages to a channel instead of the main stream; StagePage gives a page that came
// over a channel to a [ram.Lazy] or a [ram.Cache].
package multifd
