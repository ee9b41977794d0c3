package failover

import "errors"

// ErrRefused says that an arbiter gave the guest to the other side, for good:
// the side that asked stays paused. An error of an arbiter that does not match
// ErrRefused says that nobody could be asked, which is no answer; the caller
// asks again.
var ErrRefused = errors.New("failover: arbiter refused")
