package vmstate

// Arrays are their elements back to back, without a count. For one whose length
// is an earlier field, give [Elems] or [Resize] of it.

// Uint8s carries an array of unsigned bytes.
func (f *Fields) Uint8s(name string, p []uint8) {
	if f.mode == describing {
		f.describe(name, "uint8", 1, len(p))
		return
	}
	f.Info(name, "uint8", p)
}

// Uint16s carries an array of unsigned 16-bit integers.
func (f *Fields) Uint16s(name string, p []uint16) {
	switch f.mode {
	case saving:
		for _, v := range p {
			f.w.PutBE16(v)
		}
	case loading:
		for i := range p {
			f.Uint16(name, &p[i])
		}
	case describing:
		f.describe(name, "uint16", 2, len(p))
	}
}

// Uint32s carries an array of unsigned 32-bit integers.
func (f *Fields) Uint32s(name string, p []uint32) {
	switch f.mode {
	case saving:
		for _, v := range p {
			f.w.PutBE32(v)
		}
	case loading:
		for i := range p {
			f.Uint32(name, &p[i])
		}
	case describing:
		f.describe(name, "uint32", 4, len(p))
	}
}

// Uint64s carries an array of unsigned 64-bit integers.
func (f *Fields) Uint64s(name string, p []uint64) {
	switch f.mode {
	case saving:
		for _, v := range p {
			f.w.PutBE64(v)
		}
	case loading:
		for i := range p {
			f.Uint64(name, &p[i])
		}
	case describing:
		f.describe(name, "uint64", 8, len(p))
	}
}

// Int8s carries an array of signed 8-bit integers.
func (f *Fields) Int8s(name string, p []int8) {
	switch f.mode {
	case saving:
		for _, v := range p {
			f.w.PutByte(uint8(v))
		}
	case loading:
		for i := range p {
			f.Int8(name, &p[i])
		}
	case describing:
		f.describe(name, "int8", 1, len(p))
	}
}

// Int16s carries an array of signed 16-bit integers.
func (f *Fields) Int16s(name string, p []int16) {
	switch f.mode {
	case saving:
		for _, v := range p {
			f.w.PutBE16(uint16(v))
		}
	case loading:
		for i := range p {
			f.Int16(name, &p[i])
		}
	case describing:
		f.describe(name, "int16", 2, len(p))
	}
}

// Int32s carries an array of signed 32-bit integers.
func (f *Fields) Int32s(name string, p []int32) {
	switch f.mode {
	case saving:
		for _, v := range p {
			f.w.PutBE32(uint32(v))
		}
	case loading:
		for i := range p {
			f.Int32(name, &p[i])
		}
	case describing:
		f.describe(name, "int32", 4, len(p))
	}
}

// Int64s carries an array of signed 64-bit integers.
func (f *Fields) Int64s(name string, p []int64) {
	switch f.mode {
	case saving:
		for _, v := range p {
			f.w.PutBE64(uint64(v))
		}
	case loading:
		for i := range p {
			f.Int64(name, &p[i])
		}
	case describing:
		f.describe(name, "int64", 8, len(p))
	}
}

// Bools carries an array of booleans.
func (f *Fields) Bools(name string, p []bool) {
	if f.mode == describing {
		f.describe(name, "bool", 1, len(p))
		return
	}
	for i := range p {
		f.Bool(name, &p[i])
	}
}
