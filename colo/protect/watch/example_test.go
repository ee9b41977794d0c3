package watch_test

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/gocolo/lockstep/colo/colotest"
	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/colo/protect/watch"
	"github.com/gocolo/lockstep/event"
)

// The page of a job that has not begun. A host serves it at [watch.Listen]'s listener,
// and calls its Run beside the job's.
func Example() {
	guest, err := colotest.NewVM(colotest.VMConfig{})
	if err != nil {
		log.Fatal(err)
	}
	defer guest.Close()
	bus := new(event.Bus)
	job, err := protect.New(protect.Config{
		Name: "db1", Host: "a", Guest: guest, Start: true, Events: bus,
		Peer: protect.Peer{Listen: "localhost:0", Dial: "other.example:7001", PortConfig: protect.PortConfig{Insecure: true}},
	})
	if err != nil {
		log.Fatal(err)
	}
	page := watch.New(watch.Config{Job: job, Events: bus})

	answer := httptest.NewRecorder()
	page.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, "http://localhost/state", nil))
	var state struct{ Guest, State string }
	if err := json.Unmarshal(answer.Body.Bytes(), &state); err != nil {
		log.Fatal(err)
	}
	fmt.Println(answer.Code, state.Guest, "is", state.State)

	// Output: 200 db1 is created
}
