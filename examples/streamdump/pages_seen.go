package main

// seen counts the pages of a block that have come, each once. It is a bitmap in
// pieces, so that memory is taken for pages and not for what a stream says it has.
type seen struct {
	pieces map[uint64]*[pieceWords]uint64
	pages  int64 // different ones; -1: all of them
	last   *[pieceWords]uint64
	lastOf uint64 // the key of last
}

const (
	pieceWords = 64
	piecePages = 64 * pieceWords
	// maxPieces bounds the pieces of all blocks: 1 TiB of pages of 4096 bytes,
	// 32 MiB of memory.
	maxPieces = 1 << 16
)

// add marks page i. It reports false where pieces, the number that all blocks have,
// would become too many.
func (s *seen) add(i uint64, pieces *int) bool {
	piece := s.last
	if piece == nil || s.lastOf != i/piecePages {
		piece = s.pieces[i/piecePages]
	}
	if piece == nil {
		if *pieces == maxPieces {
			return false
		}
		*pieces++
		if s.pieces == nil {
			s.pieces = make(map[uint64]*[pieceWords]uint64)
		}
		piece = new([pieceWords]uint64)
		s.pieces[i/piecePages] = piece
	}
	s.last, s.lastOf = piece, i/piecePages
	word, bit := &piece[i%piecePages/64], uint64(1)<<(i%64)
	if *word&bit == 0 {
		*word |= bit
		s.pages++
	}
	return true
}
