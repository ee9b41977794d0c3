// Package copies measures what was tried to make a capture's copy cheaper, and is not done,
// beside what is done: pages copied one by one, each behind its record's head, to a place
// that is used again. What came of it is in docs/benchmarks.md.
//
//	go test ./internal/copies -bench .
package copies
