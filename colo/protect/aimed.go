package protect

// doIn is do for a verb that is meant for a session. It fails with errMoved, and nothing has
// changed, if that is not the job's session any more: the next one may be in the same state.
func (j *Job) doIn(s *session, in input, reason string) error {
	_, err := j.enterIn(s, in, reason)
	return err
}

// goingOn moves the job by a verb that has this host go on, and returns the session that goes on
// here; nil for a Failover that is being asked for. A session that ends at that moment is not
// taken for the next one, which has not lost anybody: goingOn looks again.
func (j *Job) goingOn(verb input, reason string) (*session, error) {
	for {
		s, err := j.allowed(verb)
		if err != nil {
			return nil, err
		}
		if err := j.useful(s); err != nil {
			return nil, err
		}
		if verb == doFailover && j.State() == Asking {
			j.yes()
			return nil, nil
		}
		if err := j.doIn(s, verb, reason); err != errMoved {
			return s, err
		}
	}
}

// handing moves the job to SwitchingOver, and returns the session that changes the sides: the
// one before it may have ended at that moment.
func (j *Job) handing(verb input) (*session, error) {
	for {
		s, err := j.allowed(verb)
		if err != nil {
			return nil, err
		}
		if s == nil { // it has failed, and the job is about to say that it ends of that
			return nil, &StateError{Verb: verb.String(), State: Concluded}
		}
		s.mu.Lock()
		s.migrates = verb == doMigrate
		s.mu.Unlock()
		if err := j.doIn(s, verb, "to "+s.peer.host); err != errMoved {
			return s, err
		}
	}
}
