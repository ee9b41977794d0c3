// Package rebind refuses requests by DNS rebinding: another site lets a name of its own
// point at this host, so that a browser takes a page of this host for a page of that
// site, and lets the site read it.
package rebind

import (
	"net"
	"net/http"
	"slices"
	"strings"
)

// Refused is the answer to a browser that asked by a name which the page does not have.
const Refused = "this page has no such name: use its address, or localhost"

// Known reports whether a request, of which host is the Host header, names this host as no
// other site can arrange: by an address, as localhost, or by one of names.
func Known(host string, names []string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.Trim(name, "[]")
	if strings.EqualFold(name, "localhost") || net.ParseIP(name) != nil {
		return true
	}
	return slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(name, n) })
}

// Handler passes requests on to next that are Known, and refuses all others.
func Handler(next http.Handler, names ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !Known(r.Host, names) {
			http.Error(w, Refused, http.StatusMisdirectedRequest)
			return
		}
		next.ServeHTTP(w, r)
	})
}
