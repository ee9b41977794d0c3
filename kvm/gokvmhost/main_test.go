package gokvmhost_test

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	asGuest()
	goleak.VerifyTestMain(m)
}
