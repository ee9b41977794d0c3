package diff

import "github.com/gocolo/lockstep/vmstate"

// partners returns for each part of a the one of b that has its name, nil if there is none: of
// several of one name the first of a goes with the first of b, and so on. rest are the parts of b that are left, in
// their order.
func partners[T any](a, b []T, name func(*T) string) (with, rest []*T) {
	of := make(map[string][]*T, len(b))
	for i := range b {
		n := name(&b[i])
		of[n] = append(of[n], &b[i])
	}
	take := func(n string) (p *T) {
		if left := of[n]; len(left) > 0 {
			p, of[n] = left[0], left[1:]
		}
		return p
	}
	for i := range a {
		with = append(with, take(name(&a[i])))
	}
	for i := range b {
		if left := of[name(&b[i])]; len(left) > 0 && left[0] == &b[i] {
			rest = append(rest, take(name(&b[i])))
		}
	}
	return with, rest
}

func fieldName(f *vmstate.Field) string    { return f.Name }
func sectionName(s *vmstate.Struct) string { return s.VMSD }
