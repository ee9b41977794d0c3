// Package oracle holds package packet against an independent parser, gopacket.
// It is a module of its own so that gopacket is nobody's dependency.
package oracle
