//go:build !unix

package cli

import "os/exec"

// Together does nothing: this system has no groups of processes, and runs no guest.
func Together(*exec.Cmd) {}
