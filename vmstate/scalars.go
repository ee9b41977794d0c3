package vmstate

// Integers are big endian, two's complement, and as wide as their name says.
// A boolean is one byte: 0 or 1 when written, anything but 0 is true when read.

// Uint8 carries an unsigned 8-bit integer.
func (f *Fields) Uint8(name string, p *uint8) {
	switch f.mode {
	case saving:
		f.w.PutByte(*p)
	case loading:
		v := f.r.Byte()
		if f.Err() == nil {
			f.undo.add(p, uint64(*p))
			*p = v
		}
	case describing:
		f.describe(name, "uint8", 1, 1)
	}
}

// Uint16 carries an unsigned 16-bit integer.
func (f *Fields) Uint16(name string, p *uint16) {
	switch f.mode {
	case saving:
		f.w.PutBE16(*p)
	case loading:
		v := f.r.BE16()
		if f.Err() == nil {
			f.undo.add(p, uint64(*p))
			*p = v
		}
	case describing:
		f.describe(name, "uint16", 2, 1)
	}
}

// Uint32 carries an unsigned 32-bit integer.
func (f *Fields) Uint32(name string, p *uint32) {
	switch f.mode {
	case saving:
		f.w.PutBE32(*p)
	case loading:
		v := f.r.BE32()
		if f.Err() == nil {
			f.undo.add(p, uint64(*p))
			*p = v
		}
	case describing:
		f.describe(name, "uint32", 4, 1)
	}
}

// Uint64 carries an unsigned 64-bit integer.
func (f *Fields) Uint64(name string, p *uint64) {
	switch f.mode {
	case saving:
		f.w.PutBE64(*p)
	case loading:
		v := f.r.BE64()
		if f.Err() == nil {
			f.undo.add(p, uint64(*p))
			*p = v
		}
	case describing:
		f.describe(name, "uint64", 8, 1)
	}
}

// Int8 carries a signed 8-bit integer.
func (f *Fields) Int8(name string, p *int8) {
	switch f.mode {
	case saving:
		f.w.PutByte(uint8(*p))
	case loading:
		v := f.r.Byte()
		if f.Err() == nil {
			f.undo.add(p, uint64(*p))
			*p = int8(v)
		}
	case describing:
		f.describe(name, "int8", 1, 1)
	}
}

// Int16 carries a signed 16-bit integer.
func (f *Fields) Int16(name string, p *int16) {
	switch f.mode {
	case saving:
		f.w.PutBE16(uint16(*p))
	case loading:
		v := f.r.BE16()
		if f.Err() == nil {
			f.undo.add(p, uint64(*p))
			*p = int16(v)
		}
	case describing:
		f.describe(name, "int16", 2, 1)
	}
}

// Int32 carries a signed 32-bit integer.
func (f *Fields) Int32(name string, p *int32) {
	switch f.mode {
	case saving:
		f.w.PutBE32(uint32(*p))
	case loading:
		v := f.r.BE32()
		if f.Err() == nil {
			f.undo.add(p, uint64(*p))
			*p = int32(v)
		}
	case describing:
		f.describe(name, "int32", 4, 1)
	}
}

// Int64 carries a signed 64-bit integer.
func (f *Fields) Int64(name string, p *int64) {
	switch f.mode {
	case saving:
		f.w.PutBE64(uint64(*p))
	case loading:
		v := f.r.BE64()
		if f.Err() == nil {
			f.undo.add(p, uint64(*p))
			*p = int64(v)
		}
	case describing:
		f.describe(name, "int64", 8, 1)
	}
}

// Bool carries a boolean.
func (f *Fields) Bool(name string, p *bool) {
	switch f.mode {
	case saving:
		f.w.PutByte(bit(*p))
	case loading:
		v := f.r.Byte()
		if f.Err() == nil {
			f.undo.add(p, uint64(bit(*p)))
			*p = v != 0
		}
	case describing:
		f.describe(name, "bool", 1, 1)
	}
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}
