package metrics_test

import (
	"net/http"
	"os"

	"github.com/gocolo/lockstep/colo"
	"github.com/gocolo/lockstep/colo/metrics"
	"github.com/gocolo/lockstep/event"
)

// A page for Prometheus, of one guest.
func Example() {
	var bus event.Bus // that of the session's configuration
	var rec metrics.Recorder
	defer bus.SubscribeAll(rec.Record)()
	info := func() colo.Info { return colo.Info{} } // the session's

	http.HandleFunc("/metrics", func(w http.ResponseWriter, _ *http.Request) {
		var set metrics.Set
		metrics.AddInfo(&set, "db1", info())
		rec.AddTo(&set)
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		set.WriteTo(w)
	})
}

// A host adds what it knows itself.
func ExampleSet_Add() {
	var set metrics.Set
	set.Add(metrics.Gauge, "lockstep_disk_lag_bytes", "What the other host's copy of the disk lacks.", 8192,
		metrics.Label{Name: "guest", Value: "db1"})
	set.WriteTo(os.Stdout)
	// Output:
	// # HELP lockstep_disk_lag_bytes What the other host's copy of the disk lacks.
	// # TYPE lockstep_disk_lag_bytes gauge
	// lockstep_disk_lag_bytes{guest="db1"} 8192
}
