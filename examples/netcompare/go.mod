module github.com/gocolo/lockstep/examples/netcompare

go 1.25.0

require (
	github.com/gocolo/lockstep v0.0.0
	github.com/gopacket/gopacket v1.7.7
)

require (
	golang.org/x/net v0.55.0 // indirect
	golang.org/x/sys v0.47.0 // indirect
)

replace github.com/gocolo/lockstep => ../..
