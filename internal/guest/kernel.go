package guest

import "encoding/binary"

// LeastKernel returns a bzImage of a header and nothing else, the least that a Linux loader
// takes. It is not run: a machine that wants a kernel to be loaded is given it before [Load]
// writes the program over it.
func LeastKernel() []byte {
	k := make([]byte, 4096)
	le := binary.LittleEndian
	k[0x1f1] = 1
	le.PutUint32(k[0x1f4:], 1)
	le.PutUint16(k[0x1fe:], 0xaa55)
	copy(k[0x202:], "HdrS")
	le.PutUint16(k[0x206:], 0x20f)
	k[0x211] = 1
	le.PutUint32(k[0x22c:], 0x7fffffff)
	le.PutUint32(k[0x238:], 2047)
	le.PutUint64(k[0x258:], 0x1000000)
	le.PutUint32(k[0x260:], 0x10000)
	return k
}
