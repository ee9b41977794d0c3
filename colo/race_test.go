//go:build race

package colo_test

// slow is by how much less a test with the race detector tries.
const slow = 8
