//go:build !linux

package tap_test

import (
	"errors"
	"testing"

	"github.com/gocolo/lockstep/colo/filter/tap"
)

func TestElsewhereOpenSaysSo(t *testing.T) {
	if _, err := tap.Open(tap.Config{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}
