// Package watch is a web page on which people watch a protected guest, and may steer
// it: an http.Handler that loads nothing from other servers. It shows both sides and
// their generations, the checkpoints of the last minute, how long output waits and
// how much of it, what happened, how far a synchronisation is, and which flows
// diverge most.
//
//	page := watch.New(watch.Config{Job: job, Events: bus})
//	go page.Run(ctx)
//	http.Serve(listener, page)
//
// # Paths
//
// All are relative, so that the page can be anywhere below a server's root:
//
//	GET  ./             the page
//	GET  ./live         what it shows, a server-sent event twice a second at most
//	GET  ./state        the same, once, as JSON
//	GET  ./timeline.svg the picture, once
//	GET  ./metrics      the job and its session as Prometheus reads them
//	POST ./act          a verb, where Control allows it
//
// # Who may do what
//
// The page asks nobody for a password: who reaches its address sees all of it.
// That should be a loopback address ([Listen] takes one unless it is told
// otherwise) or one behind a server that knows its users. A browser that another
// site has lured there cannot read it, and cannot give it orders: requests must
// name the host by its address, as localhost, or by one of Config.Hosts, so that no
// name can be bound to it later; nothing allows another origin to read an answer;
// and an order must come from this origin, with a token that only the page has.
//
// Without Config.Control there are no buttons, no token and no path for orders.
package watch
