// Package oracle holds package packet against an independent parser, gopacket. It is a
// module of its own so that nothing else depends on gopacket.
package oracle
