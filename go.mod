module github.com/gocolo/lockstep

go 1.25.0

require (
	github.com/bobuhiro11/gokvm v0.0.8-0.20231003020000-f53faca69d28
	github.com/google/go-cmp v0.7.0
	go.uber.org/goleak v1.3.0
	golang.org/x/sys v0.47.0
)

require golang.org/x/arch v0.2.0 // indirect
