package metrics

import (
	"slices"
	"time"

	"github.com/gocolo/lockstep/colo/compare"
	"github.com/gocolo/lockstep/colo/filter"
	"github.com/gocolo/lockstep/colo/proxy"
	"github.com/gocolo/lockstep/event"
)

// AddPrimaryNetwork adds the counts of the primary's side of a NIC. The name nic tells
// the NICs of a guest apart.
func AddPrimaryNetwork(s *Set, guest, nic string, n proxy.PrimaryStats) {
	who := nicOf(guest, nic, "primary")
	left := func(why string, n uint64) {
		s.Add(Counter, "lockstep_network_left_packets_total", "Packets of the guest that have left, by why they might.", float64(n), append(who[:3:3], Label{"why", why})...)
	}
	left("match", n.Matched)
	left("checkpoint", n.Checkpoint)
	left("uncompared", n.Passed)
	s.Add(Counter, "lockstep_network_checkpoints_asked_total", "Checkpoints that the comparison has asked for.", float64(n.Diverged), who...)
	s.Add(Counter, "lockstep_network_recovered_total", "Divergences after which the guests agreed without a checkpoint.", float64(n.Recovered), who...)
	for r, count := range n.Compare.Diverged {
		if count > 0 {
			s.Add(Counter, "lockstep_network_diverged_total", "Divergences that the comparison has found, by reason.", float64(count), append(who[:3:3], Label{"reason", compare.Reason(r).String()})...)
		}
	}
	s.Add(Counter, "lockstep_network_flows_set_apart_total", "Times that a flow was set apart, since the guests never agree about it.", float64(n.Compare.SetApart), who...)
	s.Add(Gauge, "lockstep_network_flows_apart", "Flows that are not compared now.", float64(n.Compare.Apart), who...)
	s.Add(Gauge, "lockstep_network_flows", "Flows that are followed now.", float64(n.Compare.Conns), who...)
	s.Add(Gauge, "lockstep_network_held_packets", "Packets that wait for the other guest or for a checkpoint now.", float64(n.Held), who...)
	s.Add(Gauge, "lockstep_network_held_bytes", "The memory for packets that wait now.", float64(n.HeldBytes), who...)
	s.Add(Gauge, "lockstep_network_connected", "Whether there is a connection to the other side's network now.", truth(n.Connected), who...)
	if n.Waits.N() > 0 {
		s.Add(Gauge, "lockstep_network_match_wait_median_seconds", "How long half of the packets that left at a match were held, at most.", n.Waits.Quantile(0.5).Seconds(), who...)
		s.Add(Gauge, "lockstep_network_match_wait_p99_seconds", "How long 99 of 100 packets that left at a match were held, at most.", n.Waits.Quantile(0.99).Seconds(), who...)
		s.Add(Gauge, "lockstep_network_match_wait_max_seconds", "How long the longest of the packets that left at a match was held.", n.Waits.Max().Seconds(), who...)
	}
	delivered(s, who, n.Delivered, n.Refused, n.Unsent)
}

// AddSecondaryNetwork adds the counts of the secondary's side of a NIC.
func AddSecondaryNetwork(s *Set, guest, nic string, n proxy.SecondaryStats) {
	who := nicOf(guest, nic, "secondary")
	s.Add(Gauge, "lockstep_network_connected", "Whether there is a connection to the other side's network now.", truth(n.Connected), who...)
	s.Add(Counter, "lockstep_network_rewritten_packets_total", "Packets whose numbers were those of the other guest's connection, and were changed.", float64(n.Rewriter.Rewritten), who...)
	s.Add(Counter, "lockstep_network_signed_connections_total", "Connections that were left alone because their segments are signed.", float64(n.Rewriter.Signed), who...)
	s.Add(Gauge, "lockstep_network_inherited_bytes", "Output of the primary that leaves now if this side takes over.", float64(n.Keep.InheritedBytes), who...)
	delivered(s, who, n.Delivered, n.Refused, n.Unsent)
}

// AddBuffer adds the counts of a NIC whose output waits for the checkpoints, as it does
// with the NIC of package protect.
func AddBuffer(s *Set, guest, nic string, b filter.BufferStats) {
	who := []Label{{"guest", guest}, {"nic", nic}}
	for _, n := range []struct {
		what           string
		packets, bytes uint64
	}{{"held", b.Held, b.HeldBytes}, {"queued", b.Queued, b.QueuedBytes}, {"inherited", b.Inherited, b.InheritedBytes}} {
		state := append(who[:2:2], Label{"state", n.what})
		s.Add(Gauge, "lockstep_buffer_packets", "Packets of the guest that have not left now: they may not (held), they may (queued), or they may if this side takes over (inherited).", float64(n.packets), state...)
		s.Add(Gauge, "lockstep_buffer_bytes", "Bytes of the packets that have not left now.", float64(n.bytes), state...)
	}
	s.Add(Counter, "lockstep_buffer_written_packets_total", "Packets that have left.", float64(b.Written), who...)
	s.Add(Counter, "lockstep_buffer_written_bytes_total", "Bytes of the packets that have left.", float64(b.WrittenBytes), who...)
	s.Add(Counter, "lockstep_buffer_dropped_packets_total", "Packets that were void at a commit.", float64(b.Dropped), who...)
	s.Add(Counter, "lockstep_buffer_refused_packets_total", "Packets that were refused because the buffer was full.", float64(b.Refused), who...)
}

// AddOutputLatency adds how long the packets of a guest that have left were kept. The
// name tells its NICs apart; it is empty for all of them together.
func AddOutputLatency(s *Set, guest, nic string, l *event.Latency) {
	d := durationsOf(l)
	s.AddHistogram("lockstep_output_latency_seconds", "How long packets were kept that have left, from when the guest sent them until the network had taken them.", &d, Label{"guest", guest}, Label{"nic", nic})
}

// durationsOf counts a duration in the first bucket that its class fits into, so that
// it may be a sixteenth too long, and is never too short.
func durationsOf(l *event.Latency) (d Durations) {
	l.Each(func(atMost time.Duration, n uint64) {
		i, _ := slices.BinarySearch(bounds, atMost)
		d.counts[i] += n
	})
	d.total = l.Total()
	return d
}

func nicOf(guest, nic, mode string) []Label {
	return []Label{{"guest", guest}, {"nic", nic}, {"mode", mode}}
}

// delivered adds the counters of packets for the guest, which both sides have.
func delivered(s *Set, who []Label, delivered, refused, unsent uint64) {
	s.Add(Counter, "lockstep_network_delivered_packets_total", "Packets that were given to the guest.", float64(delivered), who...)
	s.Add(Counter, "lockstep_network_refused_packets_total", "Packets for the guest that were dropped because it took none.", float64(refused), who...)
	s.Add(Counter, "lockstep_network_unsent_packets_total", "Packets that found no room on the way to the other side.", float64(unsent), who...)
}
