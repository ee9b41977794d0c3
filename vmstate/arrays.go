package vmstate

// Arrays are their elements back to back, without a count. For one whose length
// is an earlier field, give [Elems] or [Resize] of it.

// array carries the elements one by one; in a description they are one field.
func array[T any](f *Fields, name, typ string, size int, p []T, one func(*Fields, string, *T)) {
	if f.mode == describing {
		f.describe(name, typ, size, len(p))
		return
	}
	for i := range p {
		one(f, name, &p[i])
	}
}

// Uint8s carries an array of unsigned bytes.
func (f *Fields) Uint8s(name string, p []uint8) {
	if f.mode == describing {
		f.describe(name, "uint8", 1, len(p))
		return
	}
	f.Info(name, "uint8", p)
}

// Uint16s carries an array of unsigned 16-bit integers.
func (f *Fields) Uint16s(name string, p []uint16) { array(f, name, "uint16", 2, p, (*Fields).Uint16) }

// Uint32s carries an array of unsigned 32-bit integers.
func (f *Fields) Uint32s(name string, p []uint32) { array(f, name, "uint32", 4, p, (*Fields).Uint32) }

// Uint64s carries an array of unsigned 64-bit integers.
func (f *Fields) Uint64s(name string, p []uint64) { array(f, name, "uint64", 8, p, (*Fields).Uint64) }

// Int8s carries an array of signed 8-bit integers.
func (f *Fields) Int8s(name string, p []int8) { array(f, name, "int8", 1, p, (*Fields).Int8) }

// Int16s carries an array of signed 16-bit integers.
func (f *Fields) Int16s(name string, p []int16) { array(f, name, "int16", 2, p, (*Fields).Int16) }

// Int32s carries an array of signed 32-bit integers.
func (f *Fields) Int32s(name string, p []int32) { array(f, name, "int32", 4, p, (*Fields).Int32) }

// Int64s carries an array of signed 64-bit integers.
func (f *Fields) Int64s(name string, p []int64) { array(f, name, "int64", 8, p, (*Fields).Int64) }

// Bools carries an array of booleans.
func (f *Fields) Bools(name string, p []bool) { array(f, name, "bool", 1, p, (*Fields).Bool) }
