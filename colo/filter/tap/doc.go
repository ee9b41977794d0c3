// Package tap is a Linux TAP interface as a source and a destination of frames:
// the place where a guest's packets enter and leave the host's network.
//
// A [Device] has the methods that package filter and package compare ask of
// what they read packets from and write them to. Elsewhere than on Linux, Open
// says that it is not supported.
package tap
