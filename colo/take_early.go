package colo

// EarlyStage is a Stage that takes memory of a checkpoint that has not begun, while its guest
// runs (ram.Cache). What has come so is dropped by Discard like all that is staged.
type EarlyStage interface {
	Stage
	// TakesEarly returns how many bytes of memory it takes between two checkpoints; 0: none.
	// differences says that pages may come as differences from what it has. It is called when
	// the initial synchronisation has been flushed.
	TakesEarly(differences bool) uint64
}

// offerEarly decides from the primary's announcement whether this side takes
// memory early.
func (s *Secondary) offerEarly(o *offer) {
	stage, ok := s.cfg.RAM.(EarlyStage)
	if ok && o != nil && o.Early {
		s.takes = func() uint64 { return stage.TakesEarly(o.Differences) }
	}
}

// sayEarly tells the primary how much memory it may send early.
func (s *Secondary) sayEarly() error {
	if s.takes == nil {
		return nil
	}
	n := s.takes()
	if n == 0 {
		return nil
	}
	s.early = true
	return s.link.SendValue(TakeEarly, n)
}

// stageEarly stages what follows an EarlyPages that was read at an offset. The guest runs.
func (s *Secondary) stageEarly(from int64) error {
	s.link.trace("<", EarlyPages, 0)
	s.op = "stage ram early"
	if s.session.step != nil {
		s.session.step(s.op, s.epoch)
	}
	s.link.patience(s.worked())
	over := s.beside.bytes()
	if err := s.state.LoadParts(s.link.R); err != nil {
		return err
	}
	s.earlyBytes += s.link.R.Offset() - from + int64(s.beside.bytes()-over)
	s.op = "wait"
	return nil
}
