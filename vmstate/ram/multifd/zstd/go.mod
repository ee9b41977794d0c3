module github.com/gocolo/lockstep/vmstate/ram/multifd/zstd

go 1.25.0

require (
	github.com/gocolo/lockstep v0.0.0
	github.com/klauspost/compress v1.20.4
	go.uber.org/goleak v1.3.0
)

require golang.org/x/sys v0.47.0 // indirect

replace github.com/gocolo/lockstep => ../../../..
