package failover

// Put sets the machine's whole state without a call of OnChange, so that a
// search can go on from where another sequence of calls left it.
func (m *Machine) Put(s Status, loading bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Store(uint32(s))
	m.loading = loading
}

// Loading returns the other half of the state.
func (m *Machine) Loading() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loading
}
