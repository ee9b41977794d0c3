package watch

import (
	"bufio"
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/gocolo/lockstep/colo/protect"
	"github.com/gocolo/lockstep/internal/rebind"
)

// Whatever is asked for, in whatever words, it is answered, and no order is carried out that
// is not the page's.
func FuzzRequest(f *testing.F) {
	const act = "POST /act HTTP/1.1\r\nHost: localhost\r\nX-Lockstep-Token: TOKEN\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 10\r\n\r\nverb=pause"
	for _, in := range []string{
		act,
		strings.Replace(act, "localhost", "evil.example", 1),
		strings.Replace(act, "Content-Type", "Sec-Fetch-Site: cross-site\r\nContent-Type", 1),
		strings.Replace(act, "Content-Type", "Origin: http://evil.example\r\nContent-Type", 1),
		"POST /act?verb=pause HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Lockstep-Token: TOKEN\r\n\r\n",
		"POST /act HTTP/1.1\r\nHost: [::1]:80\r\nX-Lockstep-Token: TOKEN\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 80\r\n\r\n--x\r\nContent-Disposition: form-data; name=\"verb\"\r\n\r\nfenced\r\n--x--\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /live?width=-1 HTTP/1.0\r\n\r\n", "GET /state?width=9999999999 HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"GET /timeline.svg?width=%zz HTTP/1.1\r\nHost: localhost\r\n\r\n", "GET //metrics/../metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
	} {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		j := newJob(protect.Protected)
		p := New(Config{Job: j, Control: true})
		in = bytes.ReplaceAll(in, []byte("TOKEN"), []byte(p.token))
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			return
		}
		ctx, leave := context.WithCancel(t.Context())
		leave() // who watches hears once
		w := httptest.NewRecorder()
		p.ServeHTTP(w, r.WithContext(ctx))
		if strings.Contains(w.Body.String(), p.token) && !strings.HasPrefix(w.Header().Get("Content-Type"), "text/event-stream") {
			t.Errorf("%q: the token is told", in)
		}
		site := r.Header.Get("Sec-Fetch-Site")
		ours := r.Method == "POST" && rebind.Known(r.Host, nil) && r.Header.Get("X-Lockstep-Token") == p.token && site != "cross-site" && site != "same-site"
		if len(j.orders) > 1 || len(j.orders) > 0 && !ours {
			t.Errorf("%q: carried out: %q", in, j.orders)
		}
	})
}
