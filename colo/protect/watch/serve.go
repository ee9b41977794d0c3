package watch

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/subtle"
	"embed"
	"encoding/json"
	"fmt"
	"html"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/gocolo/lockstep/internal/timeline"
)

//go:embed page.html page.css page.js
var files embed.FS

// index serves the page: one document that contains its style and script. live sends what
// it shows.
func (p *Page) index(w http.ResponseWriter, r *http.Request) {
	nonce := rand.Text()
	page := document(p.cfg.Job.Query().Guest, nonce, p.cfg.Control)
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", fmt.Sprintf("default-src 'none'; script-src 'nonce-%s'; style-src 'nonce-%s'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'", nonce, nonce))
	h.Set("X-Frame-Options", "DENY")
	w.Write([]byte(page))
}

// document returns the page for a guest, whose name is the only text in it from outside this
// package. It does not use html/template: a linker that sees a template keeps every exported
// method of the whole program.
func document(guest, nonce string, orders bool) string {
	page, css, js := text("page.html"), text("page.css"), text("page.js")
	for !orders {
		before, rest, found := strings.Cut(page, "{{orders}}")
		if !found {
			break
		}
		_, after, _ := strings.Cut(rest, "{{/orders}}")
		page = before + after
	}
	return strings.NewReplacer("{{orders}}", "", "{{/orders}}", "",
		"{{guest}}", html.EscapeString(guest), "{{nonce}}", nonce,
		"{{style}}", css+timeline.Style, "{{script}}", js).Replace(page)
}

func text(file string) string {
	b, _ := files.ReadFile(file) // embedded
	return string(b)
}

// width returns the width of the picture that a request asks for.
func width(r *http.Request) int {
	n, err := strconv.Atoi(r.URL.Query().Get("width"))
	if err != nil {
		return 1000
	}
	return min(max(n, 280), 4000)
}

func (p *Page) state(w http.ResponseWriter, r *http.Request) {
	s := p.snapshot(width(r))
	s.Token = "" // only the page gets the token
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(s)
}

func (p *Page) picture(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "image/svg+xml")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	fmt.Fprint(w, standalone(p.snapshot(width(r)).Picture))
}

// standalone gives a picture of the page the style that it has there.
func standalone(picture string) string {
	head, rest, _ := bytes.Cut([]byte(picture), []byte(">"))
	return string(head) + "><style>" + timeline.Style + "</style>" + string(rest)
}

// live sends what there is to see, whole each time, so that a browser that has
// missed something, or a restart, is right again with the next message.
func (p *Page) live(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead { // nothing would be sent, for ever
		w.Header().Set("Content-Type", "text/event-stream")
		return
	}
	select {
	case p.viewers <- struct{}{}:
		defer func() { <-p.viewers }()
	default:
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many watch already", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	out := http.NewResponseController(w)
	wide := width(r)
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		b, err := json.Marshal(p.snapshot(wide))
		if err != nil {
			return
		}
		deadline(w, stalling)
		if _, err := fmt.Fprintf(w, "event: state\ndata: %s\n\n", b); err != nil {
			return
		}
		if out.Flush() != nil {
			return
		}
		if !p.pause(r.Context(), between, nil) || !p.pause(r.Context(), silence-between, changed) {
			return
		}
	}
}

// pause waits for a while, or until there is something new, and reports whether the
// browser and the page are still there.
func (p *Page) pause(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-changed:
	case <-ctx.Done():
		return false
	case <-p.over:
		return false
	}
	return true
}

// maxForm bounds the body of an order, in bytes.
const maxForm = 4 << 10

// act carries an order out. If the job refuses it the answer is 409 with the text of its
// error.
func (p *Page) act(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	out := http.NewResponseController(w)
	out.SetReadDeadline(time.Now().Add(stalling)) // where the server supports that
	token := r.Header.Get("X-Lockstep-Token")
	if err := p.origin.Check(r); err != nil || subtle.ConstantTimeCompare([]byte(token), []byte(p.token)) != 1 {
		p.refused("an order that is not the page's was refused", "from", r.RemoteAddr, "origin", r.Header.Get("Origin"))
		http.Error(w, "this order does not come from the page as it is now: reload it", http.StatusForbidden)
		return
	}
	if err := r.ParseForm(); err != nil { // the deadline stays for what has not come
		deadline(w, stalling)
		http.Error(w, "the order is not whole: "+err.Error(), http.StatusBadRequest)
		return
	}
	out.SetReadDeadline(time.Time{})
	verb, in := r.PostForm.Get("verb"), p.cfg.Job.Query()
	// A browser that leaves does not undo what was ordered. An order that is not carried out in its
	// time, as where the arbiter does not answer, keeps no other one from its turn.
	limit := asking
	if verb == "switchover" {
		limit = moving
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), limit)
	defer cancel()
	var err error
	deadline(w, 0) // an order takes as long as it takes
	switch job := p.cfg.Job; verb {
	case "checkpoint":
		err = job.Checkpoint()
	case "pause":
		err = job.Pause(ctx, "by the page")
	case "resume":
		err = job.Resume()
	case "switchover":
		err = job.Switchover(ctx)
	case "failover":
		err = job.Failover()
	case "fenced":
		err = job.Fenced()
	default:
		deadline(w, stalling)
		http.Error(w, "no such order", http.StatusBadRequest)
		return
	}
	deadline(w, stalling)
	args := []any{"order", verb, "guest", in.Guest, "side", in.Role.String(), "generation", in.Generation, "from", r.RemoteAddr}
	if in.Session != nil {
		args = append(args, "checkpoint", in.Session.Epoch)
	}
	if err != nil {
		p.log.Info("ordered by the page", append(args, "error", err)...)
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	p.log.Info("ordered by the page", args...)
	w.WriteHeader(http.StatusNoContent)
}
