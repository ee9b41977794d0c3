module github.com/gocolo/lockstep/internal/packet/oracle

go 1.25.0

require github.com/gocolo/lockstep v0.0.0

require github.com/gopacket/gopacket v1.7.7

replace github.com/gocolo/lockstep => ../../..
