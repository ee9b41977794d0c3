package qmp

import "strings"

// A page of a foreign site can make a browser post a text to any address, also to a monitor on
// the loopback address of this host. A monitor would answer each line of the request's head
// with an error, and then carry out the commands in its body. So a client that begins as a
// browser does is refused.
var requestLines = []string{"GET ", "HEAD ", "POST ", "OPTIONS "}

// longestVerb is the length of the longest of requestLines.
const longestVerb = len("OPTIONS ")

// opening keeps the first bytes of a client until it is known whether that is a browser.
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
