package vmstate

// PeerID returns the section id under which the peer has introduced a device in this
// session. The PART and END sections of a live device refer to the device by it.
func (reg *Registry) PeerID(name string, instance uint32) (id uint32, ok bool) {
	e := reg.names[Alias{name, instance}]
	if e == nil || !e.known {
		return 0, false
	}
	return e.peerID, true
}
