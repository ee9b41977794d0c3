// Package netstack holds tests that have a real TCP stack, in user space, in the place of
// each guest: one that can be copied in the middle of a connection, as a checkpoint does
// with a guest. It is a module of its own, so that nothing else depends on that stack.
package netstack
