package protect

import "net"

// A line is a connection among others: the control connection of a peer, which may have another one in
// its place, or one of a Port that has not said yet what it is for. What a caller's Dialer or listener
// returns need not be comparable.
type line struct{ net.Conn }
