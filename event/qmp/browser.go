package qmp

import "strings"

// A browser that shows a page of somebody else's posts what that page says to any address
// that the page names, a monitor on this host's loopback address among them. A monitor would
// answer each line of the request's head with an error, and then do what is in its body. So
// a client that begins as a browser does is none.
var requestLines = []string{"GET ", "HEAD ", "POST ", "OPTIONS "}

// longestVerb is the length of the longest of them.
const longestVerb = len("OPTIONS ")

// opening is what a client begins with, as far as it takes to know a browser.
type opening struct {
	text  [longestVerb]byte
	n     int
	known bool // it is no browser
}

// browser takes the next byte and reports whether those so far are how a browser begins.
func (o *opening) browser(b byte) bool {
	if o.known {
		return false
	}
	o.text[o.n] = b
	o.n++
	o.known = true
	for _, line := range requestLines {
		switch said := string(o.text[:o.n]); {
		case said == line:
			return true
		case strings.HasPrefix(line, said):
			o.known = false
		}
	}
	return false
}
