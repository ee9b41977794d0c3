//go:build race

package colo_test

// raceEnabled says that the race detector watches, which takes eight times as long.
const raceEnabled = true
