package mapping

// Populate takes memory for p, which is about to be written, in one step instead of a fault
// for each page, without a change of what it holds. It is for the first writing of memory
// that is mapped already: what it cannot take is taken by the faults. p begins at a page.
func Populate(p []byte) {
	if len(p) > 0 {
		populate(p)
	}
}
