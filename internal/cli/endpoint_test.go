package cli

import "testing"

func TestAMemberIsAHostAndAPort(t *testing.T) {
	for _, s := range []string{"a:2379", "http://a:2379", "https://a.example:2379/", "10.0.0.1:2379", "[::1]:2379", "https://[fe80::1]:2379"} {
		if err := CheckEndpoint(s); err != nil {
			t.Error(err)
		}
	}
	for _, s := range []string{"", "a", "a:", ":2379", "//a:2379", "https://a", "https://", "a:2379/key", "::1:2379", "a:1:2", "a:2379 b:2379/"} {
		if CheckEndpoint(s) == nil {
			t.Errorf("%q is taken for a member", s)
		}
	}
}
