package ram

// Pages returns Stats().Pages: how many page records the checkpoint in progress,
// or the last one, carried. It lets a Saver be a colo.PageCounter.
func (s *Saver) Pages() uint64 { return s.stats.Pages }
