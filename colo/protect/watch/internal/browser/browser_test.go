//go:build linux

package browser

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/gocolo/lockstep/internal/require"
)

var screenshots = flag.String("screenshots", os.Getenv("LOCKSTEP_SCREENSHOTS"), "write what the browser shows to this `directory`; by default the one that LOCKSTEP_SCREENSHOTS names")

// chromium starts a browser.
func chromium(t *testing.T) context.Context {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		require.Missing(t, "chromium", err)
	}
	dir := t.TempDir()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.DisableGPU, chromedp.UserDataDir(dir), chromedp.WSURLReadTimeout(2*time.Minute),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true), chromedp.Flag("disable-background-networking", true))
	// Not the test's context: it ends before the clean-up, and with it a browser that is
	// killed and leaves processes that write to its directory.
	ctx, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, cancel := chromedp.NewContext(ctx, chromedp.WithErrorf(t.Logf))
	t.Cleanup(func() {
		closing, late := context.WithTimeout(ctx, time.Minute)
		chromedp.Cancel(closing) // in good order, if it can
		late()
		cancel()
		stop()
		gone(t, dir)
	})
	if err := chromedp.Run(ctx); err != nil {
		t.Fatal(err)
	}
	return ctx
}

// gone waits until no process has a directory in its command line.
func gone(t *testing.T, dir string) {
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		list, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			t.Error(err)
			return
		}
		left := 0
		for _, name := range list {
			if line, err := os.ReadFile(name); err == nil && bytes.Contains(line, []byte(dir)) {
				left++
			}
		}
		if left == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%d of the browser's processes are left", left)
			return
		}
	}
}

// A tab of the browser shows one page at a time.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu   sync.Mutex
	said []string // what went wrong in the page, and what it asked of others
}

func newTab(t *testing.T, browser context.Context) *tab {
	b := &tab{t: t, ctx: browser}
	chromedp.ListenTarget(browser, b.listen)
	b.do(network.Enable(), log.Enable(), chromedp.EmulateViewport(1200, 900))
	return b
}

// quiet checks that nothing went wrong in the pages so far.
func (b *tab) quiet() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.said {
		b.t.Errorf("in the page: %s", s)
	}
}

func (b *tab) listen(e any) {
	s := ""
	switch e := e.(type) {
	case *runtime.EventExceptionThrown:
		s = e.ExceptionDetails.Error()
	case *log.EventEntryAdded:
		if e.Entry.Source != log.SourceNetwork { // a host that is killed answers nothing
			s = e.Entry.Text
		}
	case *network.EventRequestWillBeSent:
		if u := e.Request.URL; !strings.HasPrefix(u, "http://127.") && !strings.HasPrefix(u, "data:") {
			s = "asks elsewhere: " + u
		}
	}
	if s != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.said = append(b.said, s)
	}
}

func (b *tab) do(actions ...chromedp.Action) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	if err := chromedp.Run(ctx, actions...); err != nil {
		b.t.Fatal(err)
	}
}

// eval returns what an expression is in the page.
func eval[T any](b *tab, js string) (v T) {
	b.t.Helper()
	b.do(chromedp.Evaluate(js, &v))
	return v
}

// until waits for an expression to be true.
func (b *tab) until(what, js string) {
	b.t.Helper()
	for end := time.Now().Add(patience); !eval[bool](b, js); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("%s: not so\nthe page says: %s", what, eval[string](b, `document.body.innerText`))
		}
	}
}

// is waits for a state.
func (b *tab) is(state string) {
	b.t.Helper()
	b.until(state, fmt.Sprintf(`document.getElementById("pill").textContent === %q && document.getElementById("stale").hidden`, state))
}

// shot keeps what the browser shows, where somebody wants it.
func (b *tab) shot(name string) {
	b.t.Helper()
	var png []byte
	b.do(chromedp.FullScreenshot(&png, 100))
	if *screenshots == "" {
		return
	}
	if err := errors.Join(os.MkdirAll(*screenshots, 0o755), os.WriteFile(filepath.Join(*screenshots, name+".png"), png, 0o644)); err != nil {
		b.t.Error(err)
	}
}

func scheme(s string) chromedp.Action {
	return emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: s}})
}

func button(verb string) string {
	return fmt.Sprintf(`document.querySelector('button[data-verb=%s]')`, verb)
}

func TestAPairIsWatchedAndSteeredInABrowser(t *testing.T) {
	b := newTab(t, chromium(t))
	p := newPair(t)
	p.start("b", "-http-control")
	p.start("a", "-http-control", "-start")
	b.do(chromedp.Navigate(p.url("a")))
	b.is("protected")
	b.until("checkpoints are drawn", `document.querySelectorAll("#picture svg g title").length > 5`)

	b.shot("protected-light")
	b.do(scheme("dark"))
	if dark := eval[string](b, `getComputedStyle(document.body).backgroundColor`); dark == "rgb(255, 255, 255)" {
		t.Errorf("in the dark the page is %s", dark)
	}
	b.shot("protected-dark")
	b.do(scheme("light"))

	fits(b)
	named(b)
	switched(b)
	p.is("b", "protected")
	b.is("following")
	b.shot("following")

	// The host with the guest dies while the other's page is watched.
	eval[bool](b, `(window.seen = [], new MutationObserver(() => seen.push(document.getElementById("pill").textContent)).observe(document.getElementById("pill"), {childList: true, characterData: true, subtree: true}), true)`)
	p.kill("b")
	b.until("it is told that the guest stands still", `document.getElementById("sentence").textContent.includes("The guest stands still here until it is settled who goes on")`)
	b.shot("failover")
	b.is("alone")
	b.until("the takeover is told", `[...document.querySelectorAll("#events b")].some(e => e.textContent === "FAILOVER")`)
	if seen := eval[[]string](b, `seen`); len(seen) < 2 || seen[0] != "asking" || seen[len(seen)-1] != "alone" {
		t.Errorf("the failover was not watched happening: %q", seen)
	}
	b.until("the error has its time", `/^Last error, at (\S+ )?\d\d:\d\d:\d\d: ./.test(document.getElementById("error").textContent) && !document.getElementById("error").hidden`)
	b.shot("after-failover")
	p.start("b", "-http-control")
	b.is("protected")
	strangers(b, p)

	// A host dies while its own page is watched.
	b.do(chromedp.Navigate(p.url("b")))
	b.is("following")
	p.kill("b")
	b.until("the page says that it is old", `!document.getElementById("stale").hidden && document.documentElement.classList.contains("stale")`)
	if n := eval[int](b, `document.querySelectorAll("#actions button:enabled").length`); n != 0 {
		t.Errorf("%d buttons of a dead host can be pressed", n)
	}
	b.shot("stale")
	// It comes back, and so does its page, by itself. This time it has no control.
	p.start("b")
	b.is("following")
	b.until("the page says that the process is another", `document.getElementById("outcome").textContent.includes("started again")`)
	if n := eval[int](b, `document.querySelectorAll("#actions button").length`); n != 0 {
		t.Errorf("the page has %d buttons that its host does not know", n)
	}
	b.do(chromedp.Reload())
	b.is("following")
	if n := eval[int](b, `document.querySelectorAll("button, dialog, #actions").length`); n != 0 {
		t.Errorf("a page without control has %d things to steer with", n)
	}
	b.shot("without-control")
	b.quiet()
}

// fits: nothing is cut off on a narrow screen.
func fits(a *tab) {
	a.do(chromedp.EmulateViewport(400, 800))
	a.until("the picture is drawn anew", `document.querySelector("#picture svg").getAttribute("width") <= 400`)
	if w := eval[int](a, `document.documentElement.scrollWidth`); w > 400 {
		a.t.Errorf("at 400 px the page is %d px wide", w)
	}
	a.shot("protected-400px")
	a.do(chromedp.EmulateViewport(1200, 900))
	a.until("the picture is drawn anew", `document.querySelector("#picture svg").getAttribute("width") > 800`)
}

// named: who hears the page, and does not see it, is told the same. The browser
// makes the tree of names when it is asked for, and piece by piece.
func named(a *tab) {
	a.t.Helper()
	want := []string{
		"button Checkpoint now", "button Pause protection", "button Switchover to the other host", "button Failover to this host", "button The other host is dead",
		"heading demo", "heading Orders", "heading What happened", "article This host", "article The other host", "image Timeline: ",
	}
	type value struct {
		Value any `json:"value"`
	}
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		var tree struct {
			Nodes []struct {
				Ignored bool  `json:"ignored"`
				Role    value `json:"role"`
				Name    value `json:"name"`
			} `json:"nodes"`
		}
		a.do(chromedp.ActionFunc(func(ctx context.Context) error {
			return cdp.Execute(ctx, "Accessibility.getFullAXTree", nil, &tree)
		}))
		var names []string
		for _, n := range tree.Nodes {
			if !n.Ignored {
				names = append(names, fmt.Sprint(n.Role.Value, " ", n.Name.Value))
			}
		}
		lacks := slices.DeleteFunc(slices.Clone(want), func(w string) bool {
			return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, w) })
		})
		switch {
		case len(lacks) == 0:
			return
		case time.Now().After(end):
			a.t.Errorf("for a screen reader there is no %q in %q", lacks, names)
			return
		}
	}
}

// switched: an order is confirmed before it is carried out, with the keyboard too.
func switched(a *tab) {
	eval[bool](a, button("switchover")+`.focus() || true`)
	a.do(chromedp.KeyEvent("\r"))
	a.until("it is asked what will happen", `document.getElementById("confirm").open`)
	if text := eval[string](a, `document.getElementById("c-text").textContent`); !strings.Contains(text, "The guest moves to host b without loss") {
		a.t.Errorf("the confirmation says %q", text)
	}
	a.shot("confirm-switchover")
	a.do(chromedp.KeyEvent("\u001b"))
	a.until("Escape is no", `!document.getElementById("confirm").open`)
	if said := eval[string](a, `document.getElementById("outcome").textContent`); said != "" {
		a.t.Errorf("what was not confirmed is ordered: %q", said)
	}
	if focus := eval[string](a, `document.activeElement.dataset.verb || ""`); focus != "switchover" {
		a.t.Errorf("after the question the focus is at %q", focus)
	}
	a.do(chromedp.Click(`button[data-verb=switchover]`), chromedp.Click(`#c-yes`))
	a.until("the order is carried out", `document.getElementById("outcome").textContent === "Switchover to the other host: done."`)
}

// strangers: another site cannot give orders, nor read anything.
func strangers(a *tab, p *pair) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, `<!doctype html><title>elsewhere</title><link rel="icon" href="data:,">`)
	}))
	defer s.Close()
	var outcome []string
	js := fmt.Sprintf(`(async () => {
		const out = [], url = %q;
		for (const [path, how] of [["act", {method: "POST", mode: "no-cors", body: new URLSearchParams({verb: "failover"})}], ["state", {}], ["live", {}]]) {
			try { const r = await fetch(url + path, how); out.push(path + " " + r.type + " " + r.status); } catch (e) { out.push(path + " refused"); }
		}
		return out;
	})()`, p.url("a"))
	a.quiet() // the console is about to say what is refused
	a.do(chromedp.Navigate(s.URL), chromedp.Evaluate(js, &outcome, func(e *runtime.EvaluateParams) *runtime.EvaluateParams { return e.WithAwaitPromise(true) }))
	a.mu.Lock()
	a.said = nil
	a.mu.Unlock()
	for _, o := range outcome {
		if !strings.HasSuffix(o, "refused") && !strings.HasSuffix(o, "opaque 0") {
			a.t.Errorf("another site gets an answer: %s", o)
		}
	}
	if len(outcome) != 3 {
		a.t.Errorf("%q", outcome)
	}
	p.is("a", "protected")
}
