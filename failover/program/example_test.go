package program_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/gocolo/lockstep/failover"
	"github.com/gocolo/lockstep/failover/failovertest"
	"github.com/gocolo/lockstep/failover/program"
)

// A program in Go hands its streams to Serve; here they are a text and an output that is
// printed.
func ExampleServe() {
	requests, lines := io.Pipe()
	answers, out := io.Pipe()
	served := make(chan error)
	go func() {
		served <- program.Serve(context.Background(), requests, out, new(failovertest.Store))
		out.Close()
	}()
	first := failover.Record{Generation: 1, Holder: "a", Token: "t", Writes: 1}
	go fmt.Fprintf(lines, `{"id":1,"do":"swap","next":%s}`+"\n", strings.TrimSpace(string(first.Encode())))
	answer, _ := bufio.NewReader(answers).ReadString('\n')
	fmt.Print(answer)
	lines.Close()
	fmt.Println(<-served)
	// Output:
	// {"id":1,"swapped":true}
	// <nil>
}
