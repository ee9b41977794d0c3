package failover

import "errors"

// ErrRefused says that an arbiter gave the guest to the other side, for good:
// the side that asked stays paused. An error of an arbiter that does not match
// ErrRefused says that nobody could be asked, which is no answer; the caller
// asks again.
var ErrRefused = errors.New("failover: arbiter refused")

// ErrNotRenewed says that an arbiter renews no grant for now, by its own rules: two hosts in
// step may go by each other's promises. It is an answer, and not final: the grant runs out
// unless the holder asks again, and is granted that, before its end.
var ErrNotRenewed = errors.New("failover: arbiter renews nothing for now")
