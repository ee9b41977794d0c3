package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
)

// obey reads commands, one a line, and calls do with each; it also calls the functions that
// come from due, all one after the other. It prints their errors and goes on. It returns
// nil after the command "quit", and ctx's error when ctx ends. When commands end the disk
// is still served.
func (p *printer) obey(ctx context.Context, commands io.Reader, due <-chan func(context.Context) error, do func(context.Context, string) error) error {
	in := lines(ctx, commands)
	for {
		var err error
		select {
		case line, ok := <-in:
			switch {
			case !ok:
				in = nil
			case line == "quit":
				return nil
			case line != "":
				err = do(ctx, line)
			}
		case now := <-due:
			err = now(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
		if err != nil {
			p.failed(err)
		}
	}
}

// unknown is the error of a line that is no command.
func unknown(line string) error { return fmt.Errorf("%.40q is no command: help lists them", line) }

// lines returns a channel of the lines of r, closed at its end. Reading
// standard input cannot be interrupted, so its goroutine ends with the
// process, or with r.
func lines(ctx context.Context, r io.Reader) <-chan string {
	ch := make(chan string)
	go func() {
		defer close(ch)
		sc := bufio.NewScanner(r)
		for sc.Scan() {
			select {
			case ch <- strings.TrimSpace(sc.Text()):
			case <-ctx.Done():
				return
			}
		}
	}()
	return ch
}
