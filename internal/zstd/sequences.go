package zstd

import "encoding/binary"

// The codes of lengths: what they begin at, and how many bits are added (RFC 8878,
// 3.1.1.3.2.1).
var (
	literalBase = [36]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20, 22, 24, 28, 32, 40, 48, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536}
	literalBits = [36]int{16: 1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	matchBase   = [53]int{3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34,
		35, 37, 39, 41, 43, 47, 51, 59, 67, 83, 99, 131, 259, 515, 1027, 2051, 4099, 8195, 16387, 32771, 65539}
	matchBits = [53]int{32: 1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
)

// kinds are the three tables of a block: literal lengths, offsets, match lengths.
var kinds = [3]struct {
	maxLog, maxSymbol int
	norm              []int // of the table that need not be sent
	log               int
}{
	{9, 35, []int{4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1}, 6},
	{8, 31, []int{1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1}, 5},
	{9, 52, []int{1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1}, 6},
}

// sequences reads the sequences of a block and does what they say.
func (d *Decoder) sequences(p []byte) error {
	if len(p) == 0 {
		return ErrCorrupt
	}
	limit := len(d.out) + maxBlock
	count, n := int(p[0]), 1
	switch {
	case count == 255 && len(p) >= 3:
		count, n = int(binary.LittleEndian.Uint16(p[1:]))+0x7f00, 3
	case count >= 128 && count < 255 && len(p) >= 2:
		count, n = (count-128)<<8|int(p[1]), 2
	case count >= 128:
		return ErrCorrupt
	}
	p = p[n:]
	if count == 0 {
		if len(p) > 0 {
			return ErrCorrupt
		}
		d.out = append(d.out, d.literals...)
		return nil
	}
	p, err := d.readTables(p)
	if err != nil {
		return err
	}
	b, err := newBackward(p)
	if err != nil {
		return err
	}
	var state [3]int
	for i := range state {
		state[i] = int(b.read(d.tables[i].log))
	}
	literals := d.literals
	for i := range count {
		var code [3]int
		for k := range code {
			code[k] = int(d.tables[k].entries[state[k]].symbol)
		}
		value := 1<<code[1] + int(b.read(code[1]))
		match := matchBase[code[2]] + int(b.read(matchBits[code[2]]))
		length := literalBase[code[0]] + int(b.read(literalBits[code[0]]))
		if i < count-1 {
			for _, k := range [...]int{0, 2, 1} {
				e := d.tables[k].entries[state[k]]
				state[k] = int(e.base) + int(b.read(int(e.bits)))
			}
		}
		offset := d.offset(value, length)
		if b.left < 0 || length > len(literals) || len(d.out)+length+match > limit {
			return ErrCorrupt
		}
		d.out = append(d.out, literals[:length]...)
		literals = literals[length:]
		if offset <= 0 || offset > len(d.out)-d.start || offset > max(d.window, maxBlock) {
			return ErrCorrupt
		}
		for from := len(d.out) - offset; match > 0; {
			m := min(match, len(d.out)-from)
			d.out = append(d.out, d.out[from:from+m]...)
			from, match = from+m, match-m
		}
	}
	if b.left != 0 || len(d.out)+len(literals) > limit {
		return ErrCorrupt
	}
	d.out = append(d.out, literals...)
	return nil
}

// readTables reads the tables of a block and returns what follows them.
func (d *Decoder) readTables(p []byte) ([]byte, error) {
	if len(p) == 0 || p[0]&3 != 0 {
		return nil, ErrCorrupt
	}
	modes := p[0]
	p = p[1:]
	for i, k := range kinds {
		switch modes >> (6 - 2*i) & 3 {
		case 0:
			d.tables[i] = buildFSE(k.norm, k.log)
		case 1:
			if len(p) == 0 || int(p[0]) > k.maxSymbol {
				return nil, ErrCorrupt
			}
			d.tables[i] = rleFSE(p[0])
			p = p[1:]
		case 2:
			t, n, err := readFSE(p, k.maxLog, k.maxSymbol)
			if err != nil || n > len(p) {
				return nil, ErrCorrupt
			}
			d.tables[i], p = t, p[n:]
		case 3:
			if d.tables[i] == nil {
				return nil, ErrCorrupt
			}
		}
	}
	return p, nil
}

// offset returns how far back a match is: as the value says, or one of the last
// three offsets (RFC 8878, 3.1.1.5).
func (d *Decoder) offset(value, length int) int {
	r := &d.repeats
	if value > 3 {
		*r = [3]int{value - 3, r[0], r[1]}
		return value - 3
	}
	if length == 0 {
		value++
	}
	switch value {
	case 1:
	case 2:
		*r = [3]int{r[1], r[0], r[2]}
	case 3:
		*r = [3]int{r[2], r[0], r[1]}
	default:
		*r = [3]int{r[0] - 1, r[0], r[1]}
	}
	return r[0]
}
