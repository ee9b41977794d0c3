package filter

// RewriterConfig configures a [Rewriter]. The zero value is usable.
type RewriterConfig struct {
	// Strict makes the rewriter do what filter-rewriter of QEMU 7.2 does, its
	// gaps included.
	Strict bool

	// MaxConns bounds the number of connections that are followed, and again that
	// of those which clients have asked for and the guest has not answered. Zero is
	// 16384. Connections beyond it are not translated, so that their packets differ
	// and a checkpoint follows, after which there is nothing to translate.
	MaxConns int

	// Untranslatable is called, if it is not nil, when the guest has opened a connection
	// that cannot be translated: it signs its segments (TCP-MD5, TCP-AO, or an
	// authentication header of IPv6), or there are too many. After the next checkpoint
	// both guests have the same numbers for it. It is called from within Outbound, once for
	// each connection, and must not block or call the Rewriter.
	Untranslatable func()

	// KeepLate has the packets kept that a guest sends before the client has answered its
	// SYN|ACK, as a guest may that has taken data with a SYN (TCP Fast Open, RFC 7413): until
	// that answer they cannot be translated. The host then asks [Rewriter.Kept] after each Outbound,
	// and [Rewriter.Late] after each Inbound and Outbound; a [Chain] does,
	// and package proxy sets KeepLate. Without KeepLate they pass as
	// they are, so that they differ, and a checkpoint follows.
	KeepLate bool

	// Edge, if it is not nil, translates connections of the same guest between the guest
	// and the network. The Rewriter tells it when the guest opens a connection in the
	// place of one of those.
	Edge *Edge
}

// RewriterStats counts packets since the Rewriter was made.
type RewriterStats struct {
	Rewritten uint64
	Held      uint64 // came before their connection's numbers were known, and were passed on later
	Dropped   uint64 // came too early, and were too many to be held
	Conns     int    // now: followed, or asked for by a client
	Signed    uint64 // connections that were left alone, because their segments are signed
	Refused   uint64 // connections that were left alone, because there were too many
}
