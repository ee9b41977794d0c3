// Package profile tells tests where the time goes that their process has on processors: it
// takes a CPU profile and reads it.
package profile
