module github.com/gocolo/lockstep/event/qmp/internal/oracle

go 1.25.0

require (
	github.com/digitalocean/go-qemu v0.0.0-20250212194115-ee9b0668d242
	github.com/gocolo/lockstep v0.0.0
)

require (
	github.com/digitalocean/go-libvirt v0.0.0-20220804181439-8648fbde413e // indirect
	golang.org/x/sys v0.47.0 // indirect
)

replace github.com/gocolo/lockstep => ../../../..
