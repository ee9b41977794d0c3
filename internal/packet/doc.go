// Package packet looks into Ethernet frames: views of headers, checksums and
// flow keys.
//
// A view is a slice of the frame under another type: nothing is copied, and a
// field that is set is set in the frame. Validity is asked once, by
// [Packet.Parse]; after it the views that it promises have all the bytes that
// their accessors touch. Nothing here allocates.
package packet
