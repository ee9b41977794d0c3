package profile

import "testing"

func TestWhatIsNoProfileIsRefused(t *testing.T) {
	for name, raw := range map[string]string{
		"a key is cut":                   "\xff",
		"a number is cut":                "\x08\xff",
		"bytes are cut":                  "\x12\x05ab",
		"a type that there is not":       "\x13\x00",
		"a sample is cut":                "\x12\x01\xff",
		"a sample of one value":          "\x12\x02\x10\x01",
		"a sample of cut values":         "\x12\x03\x12\x01\xff",
		"a label is cut":                 "\x12\x07\x12\x02\x01\x01\x1a\x01\xff",
		"a name beyond the strings":      "\x12\x07\x0a\x01\x01\x12\x02\x01\x01\x22\x06\x08\x01\x22\x02\x08\x01\x2a\x04\x08\x01\x10\x07",
		"a line of a location is cut":    "\x22\x03\x22\x01\xff",
		"a function is cut":              "\x2a\x01\xff",
		"a field of a location is wrong": "\x22\x01\x0d",
	} {
		if s, err := decode([]byte(raw)); err == nil {
			t.Errorf("%s: %v", name, s)
		}
	}
}
