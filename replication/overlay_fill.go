package replication

import "io"

const (
	// lendAtOnce is how many slots are lent to one call of fill.
	lendAtOnce = 64
	// maxLent is how many slots are lent at the same time, beyond the bound of the
	// overlay.
	maxLent = 1024
)

// fill reads the content of blocks [b0, b1), of which nothing is held, from a disk of size
// bytes to where it is kept, so that it is not copied. Blocks of zeroes take no room but in
// the map. It reports whether it could do that, and has done nothing if not.
func (o *overlay) fill(disk io.ReaderAt, size, b0, b1 int64) (able, half bool, err error) {
	m, ok := o.store.(*memorySlots)
	if !ok || b1-b0 > lendAtOnce {
		return false, false, nil
	}
	var space [lendAtOnce]uint32
	lent := space[:b1-b0]
	if !o.lend(lent) {
		return false, false, nil
	}
	var zero [lendAtOnce]bool
	for i := 0; i < len(lent) && err == nil; {
		n := m.together(lent[i:])
		at := (b0 + int64(i)) * BlockSize
		p := m.at(lent[i]-1, 0, n*BlockSize)
		p = p[:min(int64(len(p)), size-at)]
		err = readFull(disk, p, at)
		for ; n > 0; i, n = i+1, n-1 {
			block := firstBlocks(p, 1)
			zero[i] = isZero(block)
			p = p[len(block):]
		}
	}
	for i := 0; i < len(lent) && err == nil; {
		j := i + 1
		for j < len(lent) && zero[j] == zero[i] {
			j++
		}
		from, to := b0+int64(i), b0+int64(j)
		var h bool
		if zero[i] {
			h, err = o.putZeroes(from, to, size)
		} else {
			h, err = o.place(from, to, size, lent[i:j])
		}
		half = half || h
		i = j
	}
	o.giveBack(lent)
	return true, half, err
}

// lend takes slots that belong to no block, and count as room only when they are placed.
// It returns false if too many are lent.
func (o *overlay) lend(slots []uint32) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lent+len(slots) > maxLent {
		return false
	}
	o.lent += len(slots)
	for i := range slots {
		slots[i] = o.takeSlot()
	}
	o.store.grow(o.next)
	return true
}

// place gives blocks [b0, b1) the slots that were lent for them and have their content,
// and takes these slots out of the list.
func (o *overlay) place(b0, b1, size int64, slots []uint32) (half bool, err error) {
	if half, err = o.reserveWith(b0, b1, true, slots); err != nil {
		return half, err
	}
	for b := b0; b < b1; b++ {
		o.hold(b, sectorsAt(b, size), 0)
	}
	clear(slots)
	return half, nil
}

// giveBack ends what lend began. The slots that are left serve other blocks, in order.
func (o *overlay) giveBack(slots []uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.lent -= len(slots)
	for i := len(slots) - 1; i >= 0; i-- {
		if slots[i] != 0 {
			o.unused = append(o.unused, slots[i])
		}
	}
}
