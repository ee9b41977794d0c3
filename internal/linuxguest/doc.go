// Package linuxguest is the world in which a protected Linux guest is tested:
// two machines, a network, and a client of the guest on a third side.
//
//	            cluster network (a Hub)
//	        ┌──────────────────────────────┐
//	┌───────┴──────┐               ┌───────┴──────┐
//	│ machine A    │               │ machine B    │   QEMU, emulated, each with
//	│  gokvm       │               │  gokvm       │   its own kernel and KVM
//	│   the guest  │               │   the guest  │
//	└───────┬──────┘               └───────┬──────┘
//	        └──────────────┬───────────────┘
//	            the guest's network (a Hub)
//	                       │
//	              tap device: the client, on the TCP stack of this kernel
//
// A Machine is a QEMU process, so that SIGKILL is a power failure: its disk is
// an image file outside of it, and nothing of its network says goodbye. A Hub
// is a switch that learns where addresses are, as a real one does. A Client
// judges what the guest says, and CheckLog what it leaves on its disk; neither
// knows anything of how the guest is protected. Package job is what the guest
// is asked to do.
//
// Kernel and userland of machines and guest are Debian packages, unpacked by
// the script .ci/linux-hosts, which also runs the tests of this package that
// need them. One of them has both QEMUs of a guest that examples/lockstep-qemu protects on one
// machine: see stock_linux_test.go.
package linuxguest
