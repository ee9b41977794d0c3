package vmstate

// undoLog remembers what loading overwrote, so that it can be put back exactly.
// Entries are undone last first: the same variable may have been loaded twice.
// The memory is kept for the next load.
type undoLog struct {
	entries []undoEntry
	saved   []byte // old contents of spans, back to back
	spans   []undoSpan
}

// undoEntry is one variable. Pointers and funcs fit into an interface without
// allocating, and old holds any integer.
type undoEntry struct {
	p   any    // *uint8 … *int64, *bool, func(); nil: the span number old
	old uint64 // in two's complement
}

type undoSpan struct {
	p   []byte
	off int // of the old content in saved
}

func (u *undoLog) add(p any, old uint64) { u.entries = append(u.entries, undoEntry{p, old}) }

func (u *undoLog) bytes(p []byte) {
	u.add(nil, uint64(len(u.spans)))
	u.spans = append(u.spans, undoSpan{p, len(u.saved)})
	u.saved = append(u.saved, p...)
}

// rollback puts everything back and empties the log.
func (u *undoLog) rollback() {
	for i := len(u.entries) - 1; i >= 0; i-- {
		e := &u.entries[i]
		switch p := e.p.(type) {
		case nil:
			s := u.spans[e.old]
			copy(s.p, u.saved[s.off:])
		case *uint8:
			*p = uint8(e.old)
		case *uint16:
			*p = uint16(e.old)
		case *uint32:
			*p = uint32(e.old)
		case *uint64:
			*p = e.old
		case *int8:
			*p = int8(e.old)
		case *int16:
			*p = int16(e.old)
		case *int32:
			*p = int32(e.old)
		case *int64:
			*p = int64(e.old)
		case *bool:
			*p = e.old != 0
		case func():
			p()
		}
	}
	u.forget()
}

// maxKept bounds the memory an idle log keeps from its largest load.
const maxKept = 16 << 20

// forget empties the log; what was loaded stays.
func (u *undoLog) forget() {
	clear(u.entries) // do not keep devices alive
	clear(u.spans)
	u.entries, u.spans, u.saved = u.entries[:0], u.spans[:0], u.saved[:0]
	if cap(u.saved) > maxKept {
		u.saved = nil
	}
	if cap(u.entries) > maxKept/32 { // the size of each
		u.entries = nil
	}
	if cap(u.spans) > maxKept/32 {
		u.spans = nil
	}
}
