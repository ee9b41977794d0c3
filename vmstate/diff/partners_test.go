package diff

import (
	"slices"
	"testing"

	"github.com/gocolo/lockstep/vmstate"
)

// A description of a stream may have several fields of one name: the second is no change of the first.
func TestOfSeveralPartsOfOneNameEachHasItsOwnPartner(t *testing.T) {
	fields := func(types ...string) (all []vmstate.Field) {
		for _, of := range types {
			all = append(all, vmstate.Field{Name: of[:1], Type: of})
		}
		return all
	}
	for _, c := range []struct {
		name             string
		a, b, with, rest []string
	}{
		{"alike", []string{"x1", "x2", "y1"}, []string{"x1", "x2", "y1"}, []string{"x1", "x2", "y1"}, nil},
		{"in another order", []string{"y1", "x1", "x2"}, []string{"x1", "y1", "x2"}, []string{"y1", "x1", "x2"}, nil},
		{"one more in a", []string{"x1", "x2"}, []string{"x1"}, []string{"x1", ""}, nil},
		{"one more in b", []string{"x1"}, []string{"x1", "y1", "x2"}, []string{"x1"}, []string{"y1", "x2"}},
		{"none", nil, []string{"x1", "x2"}, nil, []string{"x1", "x2"}},
	} {
		with, rest := partners(fields(c.a...), fields(c.b...), fieldName)
		types := func(parts []*vmstate.Field) (all []string) {
			for _, p := range parts {
				if p == nil {
					p = &vmstate.Field{}
				}
				all = append(all, p.Type)
			}
			return all
		}
		if got := types(with); !slices.Equal(got, c.with) {
			t.Errorf("%s: %q go with %q, want %q", c.name, got, c.a, c.with)
		}
		if got := types(rest); !slices.Equal(got, c.rest) {
			t.Errorf("%s: %q are left, want %q", c.name, got, c.rest)
		}
	}
}
