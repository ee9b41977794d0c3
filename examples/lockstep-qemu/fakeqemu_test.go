package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"github.com/gocolo/lockstep/internal/socket"
)

// fakeQEMU is a monitor that says what a QEMU says while its guest is protected, and hangs at
// one step: a command that it does not answer, and nothing is answered from then on.
type fakeQEMU struct {
	addr  string
	oob   bool // what it hears out of band is answered all the same
	kept  bool // it hangs until its migration is yanked
	alone bool // nobody is where its guest is sent to
	every int  // milliseconds between two checkpoints

	mu      sync.Mutex
	hangsAt int      // how many steps it does; -1: all of them
	steps   []string // that it has heard, in their order; "greeting" for a connection
	status  string   // of the guest
	migrate string   // the status of the migration
	jobs    map[string]bool
	waiting []func()      // what it has not answered
	hung    chan struct{} // closed when it hangs
}

// newFakeQEMU serves a monitor until the test ends.
func newFakeQEMU(t *testing.T, hangsAt int) *fakeQEMU {
	t.Helper()
	sock := filepath.Join(socket.Dir(t), "qmp")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	q := &fakeQEMU{addr: "unix:" + sock, hangsAt: hangsAt, status: "running", migrate: "none", jobs: make(map[string]bool), hung: make(chan struct{})}
	var all sync.WaitGroup
	var conns []net.Conn
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			q.mu.Lock()
			conns = append(conns, conn)
			q.mu.Unlock()
			all.Go(func() { q.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		q.mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		q.mu.Unlock()
		all.Wait()
	})
	return q
}

// step takes a step down, and reports whether the monitor still answers.
func (q *fakeQEMU) step(name string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.steps = append(q.steps, name)
	if q.hangsAt < 0 || len(q.steps) <= q.hangsAt {
		return true
	}
	if len(q.steps) == q.hangsAt+1 {
		close(q.hung)
	}
	return false
}

// goesOn has it answer what it has not answered, and hang no more.
func (q *fakeQEMU) goesOn() {
	q.mu.Lock()
	waiting := q.waiting
	q.hangsAt, q.waiting = -1, nil
	q.mu.Unlock()
	for _, answer := range waiting {
		answer()
	}
}

// stands returns the step at which it hangs.
func (q *fakeQEMU) stands() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.steps[q.hangsAt]
}

func (q *fakeQEMU) serve(conn net.Conn) {
	defer conn.Close()
	if q.step("greeting") {
		fmt.Fprint(conn, `{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}`+"\r\n")
	}
	for in := bufio.NewScanner(conn); in.Scan(); {
		var c struct {
			Execute string
			OOB     string `json:"exec-oob"`
			ID      int
			Args    map[string]any `json:"arguments"`
		}
		if json.Unmarshal(in.Bytes(), &c) != nil {
			return
		}
		if c.OOB != "" && q.oob {
			q.mu.Lock()
			q.steps = append(q.steps, c.OOB)
			q.mu.Unlock()
			fmt.Fprintf(conn, `{"return": {}, "id": %d}`+"\r\n", c.ID)
			if q.kept && c.OOB == "yank" {
				q.goesOn()
			}
			continue
		}
		answer := func() { fmt.Fprintf(conn, `{"return": %s, "id": %d}`+"\r\n", q.answer(c.Execute, c.Args), c.ID) }
		if q.step(c.Execute + c.OOB) {
			answer()
			continue
		}
		q.mu.Lock()
		q.waiting = append(q.waiting, answer)
		q.mu.Unlock()
	}
}

// answer carries a command out.
func (q *fakeQEMU) answer(command string, args map[string]any) string {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch command {
	case "query-status":
		return fmt.Sprintf(`{"status": %q}`, q.status)
	case "query-kvm":
		return `{"enabled": true, "present": true}`
	case "query-memory-size-summary":
		return `{"base-memory": 1048576}`
	case "query-cpus-fast":
		return `[{}]`
	case "query-migrate":
		return fmt.Sprintf(`{"status": %q}`, q.migrate)
	case "query-migrate-parameters":
		return fmt.Sprintf(`{"x-checkpoint-delay": %d}`, q.every)
	case "query-migrate-capabilities":
		return `[{"capability": "x-colo", "state": false}]`
	case "query-block":
		return `[{"device": "d", "inserted": {"ro": false, "file": "f", "drv": "raw", "node-name": "n", "image": {"virtual-size": 1}}}]`
	case "query-named-block-nodes", "query-jobs":
		return `[]`
	case "query-block-jobs":
		list := []string{}
		for j := range q.jobs {
			list = append(list, fmt.Sprintf(`{"device": %q, "ready": true, "offset": 1, "len": 1, "status": "ready", "io-status": "ok"}`, j))
		}
		return jsonList(list)
	case "qom-list":
		return `[{"name": "compare", "type": "child<colo-compare>"}, {"name": "take", "type": "child<filter-redirector>"}]`
	case "qom-get":
		return cmp.Or(map[any]string{"type": `"pc-machine"`, "queue": `"rx"`, "outdev": `"held"`}[args["property"]], `""`)
	case "blockdev-mirror":
		q.jobs[fmt.Sprint(args["job-id"])] = true
	case "block-job-cancel":
		delete(q.jobs, fmt.Sprint(args["device"]))
	case "stop":
		q.status = "paused"
	case "cont":
		q.status = "running"
	case "migrate":
		if q.migrate, q.status = "colo", "colo"; q.alone {
			q.migrate, q.status = "failed", "running"
		}
	case "migrate_cancel":
		q.migrate = "cancelled"
	case "x-colo-lost-heartbeat":
		q.migrate, q.status = "completed", "running"
	}
	return `{}`
}

func jsonList(list []string) string {
	text := "["
	for i, s := range list {
		if i > 0 {
			text += ", "
		}
		text += s
	}
	return text + "]"
}
