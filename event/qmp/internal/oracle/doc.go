// Package oracle lets a client of QEMU's monitor that others have written talk
// to the server of package qmp. It is a module of its own: what it needs is no
// concern of the library's users.
package oracle
