// Package browser tests the page to watch in a real browser.
package browser
