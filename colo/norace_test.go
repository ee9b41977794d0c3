//go:build !race

package colo_test

// slow is by how much less a test tries than it could.
const slow = 1
