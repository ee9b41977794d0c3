package zstd

import "math/bits"

const maxHuffman = 11 // bits of a code

// huffman decodes literals (RFC 8878, 4.2): the next log bits give a symbol and the length of
// its code, with which they begin.
type huffman struct {
	log     int
	entries []huffmanEntry
}

// huffmanEntry is the symbol that bits begin with, and how many of them it is.
type huffmanEntry struct{ symbol, bits uint8 }

// readHuffman reads the description of a tree, and returns how many bytes it has.
func readHuffman(p []byte) (*huffman, int, error) {
	if len(p) == 0 {
		return nil, 0, ErrCorrupt
	}
	var weights []uint8
	n := int(p[0])
	if n >= 128 {
		count := n - 127
		n = (count + 1) / 2
		if 1+n > len(p) {
			return nil, 0, ErrCorrupt
		}
		for i := range count {
			weights = append(weights, p[1+i/2]>>(4*(1-i%2))&15)
		}
	} else {
		if 1+n > len(p) {
			return nil, 0, ErrCorrupt
		}
		var err error
		if weights, err = readWeights(p[1 : 1+n]); err != nil {
			return nil, 0, err
		}
	}
	h, err := buildHuffman(weights)
	return h, 1 + n, err
}

// readWeights decodes weights that are compressed: two states take turns.
func readWeights(p []byte) ([]uint8, error) {
	t, n, err := readFSE(p, 6, 255)
	if err != nil || n > len(p) {
		return nil, ErrCorrupt
	}
	b, err := newBackward(p[n:])
	if err != nil {
		return nil, err
	}
	var weights []uint8
	var state [2]int
	for i := range state {
		state[i] = int(b.read(t.log))
	}
	if b.left < 0 {
		return nil, ErrCorrupt
	}
	for i := 0; len(weights) < 255; i ^= 1 {
		e := t.entries[state[i]]
		weights = append(weights, e.symbol)
		state[i] = int(e.base) + int(b.read(int(e.bits)))
		if b.left < 0 {
			return append(weights, t.entries[state[i^1]].symbol), nil
		}
	}
	return nil, ErrCorrupt
}

// buildHuffman makes the table. The last symbol's weight is what the others leave.
func buildHuffman(weights []uint8) (*huffman, error) {
	sum := 0
	for _, w := range weights {
		if w > maxHuffman {
			return nil, ErrCorrupt
		}
		if w > 0 {
			sum += 1 << (w - 1)
		}
	}
	if sum == 0 || len(weights) > 255 {
		return nil, ErrCorrupt
	}
	log := bits.Len(uint(sum))
	rest := 1<<log - sum
	if log > maxHuffman || rest&(rest-1) != 0 {
		return nil, ErrCorrupt
	}
	weights = append(weights, uint8(bits.Len(uint(rest))))
	h := &huffman{log: log, entries: make([]huffmanEntry, 1<<log)}
	at := 0
	// The longest codes, of weight 1, come first.
	for w := uint8(1); int(w) <= log; w++ {
		for s, sw := range weights {
			if sw != w {
				continue
			}
			for range 1 << (w - 1) {
				h.entries[at] = huffmanEntry{uint8(s), uint8(log + 1 - int(w))}
				at++
			}
		}
	}
	return h, nil
}

// decode fills out with what one stream has.
func (h *huffman) decode(out, p []byte) error {
	b, err := newBackward(p)
	if err != nil {
		return err
	}
	mask := 1<<h.log - 1
	state := int(b.read(h.log))
	for i := range out {
		e := h.entries[state]
		out[i] = e.symbol
		state = (state<<e.bits | int(b.read(int(e.bits)))) & mask
	}
	if b.left != -h.log {
		return ErrCorrupt
	}
	return nil
}
