package compare

// TakeNothingAsPlain has the engine look at each packet as if none were plain.
func (e *Engine) TakeNothingAsPlain() { e.thorough = true }

// TookPlain reports whether the last packet was taken as a plain segment.
func (e *Engine) TookPlain() bool { return e.in.id != e.ids }
