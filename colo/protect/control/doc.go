// Package control lets others steer and watch a protected guest: a QMP monitor
// for programs, and the page of package watch for people. A host serves both with
// one call, for as long as its job runs:
//
//	handles := control.Flags(flag.CommandLine) // -qmp, -http, -http-control
//	...
//	err := handles.Run(ctx, job, control.Config{Events: bus, Guest: guest, Quit: end})
//
// # The monitor
//
// It has the commands of QEMU that make sense for a protected guest, and answers
// as QEMU does:
//
//	query-status, stop, cont     the guest; stop is a pause of Config.Guest beside the job's own
//	query-name                   the guest's name
//	query-colo-status            the side of this host, and how the last session ended
//	x-colo-lost-heartbeat        protect.Job.Failover
//	query-migrate                how far a synchronisation has come
//	migrate-set-parameters,      x-checkpoint-delay, where the job can change it (0 is a millisecond)
//	query-migrate-parameters
//	migrate-set-capabilities,    x-colo is on, and stays so
//	query-migrate-capabilities
//	query-jobs                   the one job, whose id is the guest's name and whose type is "protect"
//	job-pause, job-resume        protect.Job.Pause and Resume
//	job-complete                 protect.Job.Switchover; answers when it is done
//	job-cancel                   protect.Job.Cancel, where the job has it
//	job-dismiss                  forgets a job that has concluded
//	xen-colo-do-checkpoint       protect.Job.Checkpoint
//	query-xen-replication-status whether a disk of the present session is broken
//	xen-set-replication          answers where the job has done it by itself; anything else is an error
//	block_resize                 protect.Job.Grow, where the job has it; device, or node-name, is the disk's name
//	quit                         Config.Quit
//
// And some that QEMU does not have:
//
//	query-protection             protect.Info, as JSON
//	protection-failover          protect.Job.Failover
//	protection-fenced            protect.Job.Fenced: the operator has made sure that the other host is dead
//	protection-complete          protect.Job.Complete: the guest has ended
//	protection-migrate           protect.Job.Migrate, where the job has it
//	protection-save              Config.Save, with the member filename
//
// Cont takes back the pause of stop and no other: a guest that stands still for a
// checkpoint does so until that is done, whatever is ordered meanwhile. On a host that
// follows it is refused, so that no client can let the copy run.
//
// A command that the state of the job does not allow gets a GenericError with the text
// of the protect.StateError. A command is carried out even if the client leaves before
// the answer. One that asks the arbiter, or makes a disk longer, ends after a minute, and one that moves the guest after
// ten, with an error that says so; protection-save has no such bound.
//
// The state of the guest is, in words of QEMU's RunState:
//
//	created         prelaunch
//	waiting         inmigrate
//	following       colo; inmigrate until the copy here is whole
//	alone, synchronising, protected, paused, cancelled
//	                running; paused after stop
//	asking, taking-over
//	                colo
//	switching-over  finish-migrate
//	concluded       shutdown
package control
