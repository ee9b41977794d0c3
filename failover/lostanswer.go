package failover

import "time"

// unheard is the last swap that the store did not answer, which it may have made all the
// same. A record that is read later, and is the one that the swap would have written, is
// the answer that was lost: the swap was made, no earlier than it was sent. Without this
// rule a host whose requests reach the store, and which gets no answers, would renew its
// grant without knowing it: it would keep the guest from the other host without having
// the guest itself.
type unheard struct {
	next Record
	sent time.Time // zero: there is none
}

// note records a swap that was not answered. If an earlier one from the same record was not
// answered either, the store may have made either of the two, so the earlier time counts.
func (u *unheard) note(next Record, sent time.Time) {
	if !u.sent.IsZero() && u.next.Writes == next.Writes && u.sent.Before(sent) {
		sent = u.sent
	}
	u.next, u.sent = next, sent
}

// take returns when the swap that wrote r was sent, once. ok is false if another swap wrote
// r.
func (u *unheard) take(r Record) (sent time.Time, ok bool) {
	if u.sent.IsZero() || r != u.next {
		return time.Time{}, false
	}
	sent = u.sent
	*u = unheard{}
	return sent, true
}
