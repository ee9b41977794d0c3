package zstd

import "math/bits"

// fseTable decodes one kind of symbol (RFC 8878, 4.1.1).
type fseTable struct {
	log     int // accuracy: the table has 1<<log states
	entries []fseEntry
}

// fseEntry says what a state means: a symbol, and how many bits are read and added to base for
// the next state.
type fseEntry struct {
	symbol uint8
	bits   uint8
	base   uint16 // of the next state
}

// readFSE reads the description of a table, of symbols up to maxSymbol, and
// returns how many bytes it has.
func readFSE(p []byte, maxLog, maxSymbol int) (t *fseTable, n int, err error) {
	b := forward{p: p}
	log, ok := b.read(4)
	if log += 5; !ok || log > maxLog {
		return nil, 0, ErrCorrupt
	}
	var norm []int
	for left := 1 << log; left > 0; {
		if len(norm) > maxSymbol {
			return nil, 0, ErrCorrupt
		}
		width := bits.Len(uint(left + 1))
		v, ok := b.read(width - 1)
		if !ok {
			return nil, 0, ErrCorrupt
		}
		// Small values take a bit less.
		if threshold := 1<<width - 1 - (left + 1); v >= threshold {
			high, ok := b.read(1)
			if !ok {
				return nil, 0, ErrCorrupt
			}
			if high != 0 {
				v += 1<<(width-1) - threshold
			}
		}
		prob := v - 1
		norm = append(norm, prob)
		switch {
		case prob < 0:
			left--
		default:
			left -= prob
		}
		if left < 0 {
			return nil, 0, ErrCorrupt
		}
		for repeat := 3; prob == 0 && repeat == 3; {
			if repeat, ok = b.read(2); !ok {
				return nil, 0, ErrCorrupt
			}
			for range repeat {
				norm = append(norm, 0)
			}
			if len(norm) > maxSymbol+1 {
				return nil, 0, ErrCorrupt
			}
		}
	}
	if len(norm) > maxSymbol+1 {
		return nil, 0, ErrCorrupt
	}
	return buildFSE(norm, log), (b.pos + 7) / 8, nil
}

// buildFSE spreads symbols over the states. Probabilities are in 1/(1<<log), and
// -1 is less than one.
func buildFSE(norm []int, log int) *fseTable {
	size := 1 << log
	t := &fseTable{log: log, entries: make([]fseEntry, size)}
	next := make([]int, len(norm))
	high := size
	for s, n := range norm {
		if n == -1 {
			high--
			t.entries[high].symbol = uint8(s)
			next[s] = 1
		}
	}
	pos, step := 0, size>>1+size>>3+3
	for s, n := range norm {
		if n <= 0 {
			continue
		}
		next[s] = n
		for range n {
			t.entries[pos].symbol = uint8(s)
			for pos = (pos + step) & (size - 1); pos >= high; pos = (pos + step) & (size - 1) {
			}
		}
	}
	for i := range t.entries {
		e := &t.entries[i]
		n := next[e.symbol]
		next[e.symbol]++
		width := log - (bits.Len(uint(n)) - 1)
		e.bits, e.base = uint8(width), uint16(n<<width-size)
	}
	return t
}

// rleFSE returns a table of one symbol, which takes no bits.
func rleFSE(symbol uint8) *fseTable { return &fseTable{entries: []fseEntry{{symbol: symbol}}} }
