// Package tsc reads the time-stamp counter.
package tsc
