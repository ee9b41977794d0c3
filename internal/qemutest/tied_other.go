//go:build !linux

package qemutest

import "os/exec"

const ties = false

func tie(*exec.Cmd) {}

func end(string) {}
