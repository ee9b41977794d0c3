package socket

import (
	"net"
	"testing"
)

func TestNoAddressIsGivenTwice(t *testing.T) {
	seen := map[string]bool{}
	for range 10 {
		for _, address := range FreeTCP(t, 10) {
			if seen[address] {
				t.Errorf("%s is given again", address)
			}
			seen[address] = true
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
		}
	}
}
