package rebind

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestOnlyNamesThatNoOtherSiteCanArrangeAreKnown(t *testing.T) {
	for host, known := range map[string]bool{
		"localhost": true, "LocalHost:80": true, "127.0.0.1": true, "192.168.7.9:8080": true,
		"[::1]": true, "[fd00::1]:443": true, "a.lan": true, "A.LAN:9": true,
		"": false, "evil.example": false, "evil.example:80": false, "127.0.0.1.evil.example": false,
		"localhost.evil.example": false, "a.lan.evil.example": false, ":80": false,
	} {
		if got := Known(host, []string{"a.lan"}); got != known {
			t.Errorf("%q: %v", host, got)
		}
	}
}

func TestARequestByAStrangersNameIsRefused(t *testing.T) {
	h := Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") }), "a.lan")
	for host, status := range map[string]int{"a.lan": http.StatusOK, "evil.example": http.StatusMisdirectedRequest} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Host = host
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, r); w.Code != status || (status != http.StatusOK && w.Body.String() != Refused+"\n") {
			t.Errorf("%s: %d %q", host, w.Code, w.Body)
		}
	}
}
