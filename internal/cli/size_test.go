package cli

import (
	"math"
	"testing"
)

func TestSizesAreReadAndPrintedAlike(t *testing.T) {
	for in, want := range map[string]string{"64M": "64M", "65536K": "64M", "1g": "1G", "4096": "4K", "4097": "4097", "16MiB": "16M", "0": "0", "18446744073709551615": "18446744073709551615"} {
		var b Bytes
		if err := b.Set(in); err != nil || b.String() != want {
			t.Errorf("%s: %v, %v, want %s", in, b, err, want)
		}
	}
}

func TestWhatIsNoSizeIsRefused(t *testing.T) {
	for _, in := range []string{"", "K", "12x", "x12", "1KK", "-1", "+1", " 1", "1 ", "1.5G", "18446744073709551616", "17179869184G"} {
		b := Bytes(math.MaxUint32)
		if err := b.Set(in); err == nil || b != math.MaxUint32 {
			t.Errorf("%q: %v, %v, want an error and no change", in, b, err)
		}
	}
}
