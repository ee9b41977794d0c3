package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"strings"
	"time"
)

// hello is what the two sides must have alike. The primary's is the first
// message on the control connection.
type hello struct {
	Version string `json:"version"`
	Memory  uint64 `json:"memory"` // bytes
	VCPUs   int    `json:"vcpus"`
	Disk    int64  `json:"disk"` // bytes, 0 for none
	NIC     string `json:"nic"`  // its address, "" for none
	LostNS  int64  `json:"lost_after_ns"`

	Continuous bool `json:"continuous"` // the primary decides
}

// welcome is the secondary's answer.
type welcome struct {
	Refused string `json:"refused,omitempty"`
	Token   string `json:"token,omitempty"` // that all other connections carry
}

// version is this program's, as far as the build knows.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" || s.Key == "vcs.modified" && s.Value == "true" {
			v += " " + s.Value
		}
	}
	return v
}

func newHello(o options, diskSize int64) hello {
	h := hello{Version: version(), Memory: o.mem, VCPUs: o.vcpus, Disk: diskSize, LostNS: int64(o.lost), Continuous: o.continuous}
	if o.tap != "" {
		h.NIC = net.HardwareAddr(o.mac[:]).String()
	}
	return h
}

// differs says in words what is not the same, "" if all is. The words are for
// both sides.
func (h hello) differs(secondary hello) string {
	var words []string
	compare := func(what, p, s string) {
		if p != s {
			words = append(words, fmt.Sprintf("%s: %s on the primary, %s on the secondary", what, p, s))
		}
	}
	none := func(s string) string {
		if s == "" || s == "0" {
			return "none"
		}
		return s
	}
	compare("program version", h.Version, secondary.Version)
	compare("memory (-mem)", size(h.Memory).String(), size(secondary.Memory).String())
	compare("CPUs (-vcpus)", fmt.Sprint(h.VCPUs), fmt.Sprint(secondary.VCPUs))
	compare("size of the disk (-disk), bytes", none(fmt.Sprint(h.Disk)), none(fmt.Sprint(secondary.Disk)))
	compare("network card (-tap, -mac)", none(h.NIC), none(secondary.NIC))
	compare("-lost-after", time.Duration(h.LostNS).String(), time.Duration(secondary.LostNS).String())
	return strings.Join(words, "; ")
}

var (
	errConfig  = errors.New("the two sides differ")
	errRefused = errors.New("the secondary refuses")
)

// answerTimeout is how long the secondary may take to answer, which makes its
// machine before.
const answerTimeout = time.Minute

// greet is the primary's half of the agreement. It returns the pair's token.
func greet(conn net.Conn, mine hello) (token string, err error) {
	conn.SetDeadline(time.Now().Add(answerTimeout))
	if err := json.NewEncoder(conn).Encode(mine); err != nil {
		return "", err
	}
	var w welcome
	if err := readMessage(conn, &w); err != nil {
		return "", fmt.Errorf("the secondary has not answered: %w", err)
	}
	if w.Refused != "" {
		return "", fmt.Errorf("%w: %s", errRefused, w.Refused)
	}
	if w.Token == "" {
		return "", errors.New("the secondary's answer has no token")
	}
	return w.Token, conn.SetDeadline(time.Time{})
}

// receive is the secondary's half. When the two fit together, ready makes what
// this side needs, and its error is the primary's too; then the pair has a token,
// which admit is told before the primary can use it.
func receive(conn net.Conn, mine hello, theirs *hello, ready func() error, admit func(token string)) error {
	conn.SetDeadline(time.Now().Add(greetTimeout))
	if err := readMessage(conn, theirs); err != nil {
		return fmt.Errorf("the primary's configuration: %w", err)
	}
	if d := theirs.differs(mine); d != "" {
		json.NewEncoder(conn).Encode(welcome{Refused: d})
		return fmt.Errorf("%w: %s", errConfig, d)
	}
	if err := ready(); err != nil {
		json.NewEncoder(conn).Encode(welcome{Refused: "the secondary: " + oneLine(err)})
		return err
	}
	w := welcome{Token: rand.Text()}
	admit(w.Token)
	conn.SetDeadline(time.Now().Add(greetTimeout))
	if err := json.NewEncoder(conn).Encode(w); err != nil {
		return err
	}
	return conn.SetDeadline(time.Time{})
}

// maxMessage bounds a message on the control connection.
const maxMessage = 4096

// readMessage reads one JSON line, and nothing beyond it.
func readMessage(conn net.Conn, v any) error {
	var line []byte
	for b := make([]byte, 1); ; {
		if _, err := conn.Read(b); err != nil {
			return err
		}
		if b[0] == '\n' {
			return json.Unmarshal(line, v)
		}
		if line = append(line, b[0]); len(line) > maxMessage {
			return errors.New("message too long")
		}
	}
}
