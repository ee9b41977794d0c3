// Package vmstate has the sections of a QEMU migration stream, and the state of
// devices as lists of fields. It reads and writes the stream as QEMU does, byte
// for byte, and can be used alone: to inspect, check, convert or produce one.
//
// Every host needs it to name the fields of its devices; the rest is for those who read
// and write streams.
//
// # A stream
//
// A stream is a header ([PutFileHeader], [PutConfiguration]), then sections and
// commands up to an EOF, then a description of the devices. Devices of some size
// are live: a START section when saving begins, PART sections while the guest
// runs, an END section when it has stopped. All others have one FULL section;
// those that a receiver needs before the live ones ([Entry].Early) have it among
// the START sections.
//
//	PutFileHeader(w)
//	PutConfiguration(w, Configuration{Machine: "pc"})
//	reg.SaveSetup(w)               // START
//	for !done {
//		done, err = reg.SaveIterate(w) // PART
//	}
//	… the guest stops …
//	reg.SaveComplete(w)            // END
//	reg.SaveDevices(w)             // FULL
//	PutEOF(w)
//	reg.PutVMDesc(w)
//	w.Flush()
//
// # Devices
//
// A [Device] names its fields once, in wire order, and [Fields] carries them
// out of it, into it, or into a description of it. So the three cannot drift
// apart, and no field has a tag: what is on the wire is the values, back to back.
//
//	func (t *timer) VMState(f *vmstate.Fields) {
//		f.Timer("deadline", &t.deadline)
//		f.Uint8("mode", &t.mode)
//		if f.Version() >= 2 {
//			f.Uint32("drift", &t.drift)
//		}
//		f.Subsection("timer/latched", 1, t.latched != 0, func(f *vmstate.Fields) {
//			f.Uint64("latched", &t.latched)
//		})
//	}
//
// # Loading is all or nothing
//
// What a peer sends is hostile until it is proven otherwise. [Registry.Load]
// decodes and checks; it writes into the devices and remembers what was there.
// [Registry.Commit] then applies it (PostLoad), or [Registry.Rollback] puts
// every field back. A load that fails has rolled back already. Counts are bounded
// before they are used, memory is taken as bytes arrive, and every error says in
// which section and at which offset ([SectionError]) it arose.
//
// # Without the devices
//
// The description at the end of a stream ([VMDesc]) tells names, types and sizes
// of every field. [ReadDocument] and [Scanner] use it to read a stream of unknown
// devices; a [Document] writes the same bytes again. Changed values of a device are
// encoded by [DeviceDesc.Encode]. Bodies of live devices are
// left to a [LiveDecoder]: a guest's memory need not fit into this process. An example of
// package ram is one that keeps it. Those of a
// device that it does not know (disks' dirty bitmaps, say) pass by as bytes, up
// to what looks like their end ([Scanner.SkipLive]).
//
// If the description of a device does not fit its section, only this device is
// not decoded: its section ends at its footer, or where the next section seems
// to begin, and [Record].Misfit says what does not fit ([MisfitError]). A
// description whose text is broken is mended ([RepairVMDesc]). Streams of old
// machines, which lack footers or the configuration, are recognised.
//
// Some things are described nowhere and stay bytes: the devices in a PACKAGED,
// since a stream with postcopy has no description; trees, whose keys the
// description leaves out; and the body of a device of which it has only the
// size.
//
// # The other direction
//
// On the return path a destination answers: [ReturnReader] and [ReturnWriter]
// are its two ends. [Incoming] says which commands a destination may be given
// when, and [Switchover] when it may agree to the guest being stopped.
//
// # What QEMU's savevm has, and where it is here
//
// The middle column says who uses it. "session": package colo does, in every
// session, and it is tested against a real QEMU. "migrate": package migrate does, and
// no session. "codec": its bytes are written and read, for inspectors and for hosts
// that need it.
//
//	qemu_savevm_state_blocked                 session   Registry.Blocked
//	qemu_savevm_non_migratable_list           session   Registry.NonMigratable
//	qemu_savevm_state_setup                   session   Registry.SaveSetup
//	qemu_savevm_state_guest_unplug_pending    migrate   Registry.GuestUnplugPending
//	qemu_savevm_state_resume_prepare          migrate   Registry.ResumePrepare
//	qemu_savevm_state_header                  session   PutFileHeader, PutConfiguration
//	qemu_savevm_state_iterate                 session   Registry.SaveIterate
//	qemu_savevm_state_cleanup                 session   Registry.SaveCleanup
//	qemu_savevm_state_complete_postcopy       migrate   Registry.SaveCompletePostcopy
//	qemu_savevm_state_complete_precopy        session   Registry.SaveComplete, SaveDevices, PutEOF, VMDesc, PutDescription
//	   … iterable_only                        session   Registry.SaveComplete, or (migrate) SaveCompleteInPostcopy
//	   … _non_iterable                        session   Registry.SaveDevices, PutEOF, VMDesc, PutDescription
//	qemu_savevm_state_pending_exact           session   Registry.Pending(true)
//	qemu_savevm_state_pending_estimate        migrate   Registry.Pending(false)
//	qemu_savevm_send_ping                     migrate   PutCommand(w, Ping(v))
//	qemu_savevm_send_open_return_path         migrate   PutCommand(w, OpenReturnPath())
//	qemu_savevm_send_packaged                 migrate   PutPackaged
//	qemu_savevm_send_postcopy_advise          migrate   PutCommand(w, PostcopyAdvise{…}.Command())
//	qemu_savevm_send_postcopy_listen          migrate   PutCommand(w, PostcopyListen())
//	qemu_savevm_send_postcopy_run             migrate   PutCommand(w, PostcopyRun())
//	qemu_savevm_send_postcopy_resume          migrate   PutCommand(w, PostcopyResume())
//	qemu_savevm_send_recv_bitmap              migrate   PutCommand(w, RecvBitmap(block))
//	qemu_savevm_send_postcopy_ram_discard     migrate   PutRAMDiscard
//	qemu_savevm_send_colo_enable              session   PutCommand(w, EnableCOLO())
//	qemu_savevm_live_state                    session   Registry.SaveComplete, PutEOF
//	qemu_save_device_state                    session   Registry.SaveDevices (or CaptureDevices, SaveCaptured), PutEOF
//	qemu_loadvm_state                         session   Registry.Blocked, ReadFileHeader, ReadConfiguration, Registry.Load, ReadVMDesc
//	qemu_loadvm_state_cleanup                 session   Registry.Rollback, NewSession
//	qemu_loadvm_state_main                    session   Registry.Load
//	qemu_load_device_state                    session   Registry.LoadDevices, Commit
//	qemu_loadvm_approve_switchover            codec     Switchover.Approve, ReturnWriter.SwitchoverAck; at the source Registry.SwitchoverAcked
//
// QEMU's functions that send a command flush. Here the methods of [ReturnWriter] do, and
// Registry.SaveCompletePostcopy; the others do not: the caller decides what leaves together.
package vmstate
