package main

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestABadCommandLineIsToldFromAFailure(t *testing.T) {
	for _, args := range []string{"", "-nonsense", "primary", "tertiary -image x -listen y", "primary x", "primary -size 12x", "primary -size 1KK", "secondary -image x"} {
		if err := run(context.Background(), strings.Fields(args), strings.NewReader(""), io.Discard); !errors.Is(err, errUsage) {
			t.Errorf("%q: %v, want a bad command line", args, err)
		}
	}
	for text, want := range map[string]int64{"512": 512, "4K": 4096, "2M": 2 << 20, "1G": 1 << 30} {
		if n, err := parseSize(text); n != want || err != nil {
			t.Errorf("size %s is %d, %v", text, n, err)
		}
	}
}
