// Package netns gives tests the kernel's TCP in the place of guests: a network
// namespace with one interface, whose frames the test reads and writes. It works on
// Linux only.
package netns
