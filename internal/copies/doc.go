// Package copies compares ways to copy the pages of a checkpoint while the guest is paused.
// This module copies them one by one, each behind the head of its record, to memory that is
// used again; the other ways were tried, and rejected. The results are in
// docs/benchmarks.md.
//
//	go test ./internal/copies -bench .
package copies
