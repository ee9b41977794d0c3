package linuxguest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
)

// prompt ends each answer of QEMU's monitor for people.
const prompt = "(qemu) "

// Ask gives a command to the emulator's monitor, such as one for the state of the CPUs, and
// returns the answer: it works whether the machine's kernel still does anything or not. It
// fails for a machine whose configuration has no Monitor.
func (m *Machine) Ask(ctx context.Context, command string) (answer string, err error) {
	if m.cfg.Monitor == "" {
		return "", fmt.Errorf("machine %s has no monitor", m.cfg.Name)
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", m.cfg.Monitor)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if at, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(at)
	}
	return answer, errors.Join(err, converse(conn, command, &answer))
}

// converse reads the greeting, gives the command, and reads its answer without the
// echo.
func converse(conn net.Conn, command string, answer *string) error {
	in := bufio.NewReader(conn)
	if _, err := untilPrompt(in); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(conn, command); err != nil {
		return err
	}
	said, err := untilPrompt(in)
	_, *answer, _ = strings.Cut(said, "\n")
	return err
}

func untilPrompt(in *bufio.Reader) (string, error) {
	const most = 1 << 20
	var b strings.Builder
	for !strings.HasSuffix(b.String(), prompt) {
		part, err := in.ReadString(prompt[len(prompt)-1])
		b.WriteString(part)
		if err != nil {
			return "", err
		}
		if b.Len() > most {
			return "", fmt.Errorf("the monitor says more than %d bytes", most)
		}
	}
	return strings.ReplaceAll(strings.TrimSuffix(b.String(), prompt), "\r", ""), nil
}
