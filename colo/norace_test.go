//go:build !race

package colo_test

const raceEnabled = false
