package watch

import (
	"bytes"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gocolo/lockstep/colo/protect"
)

// Whoever reaches the page can ask for what it refuses as often as he likes.
func TestRequestsThatAreRefusedDoNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := New(Config{Job: newJob(protect.Protected), Control: true, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		ask := func() {
			other := httptest.NewRequest("GET", "/", nil)
			other.Host = "elsewhere.example"
			p.ServeHTTP(httptest.NewRecorder(), other)
			order := httptest.NewRequest("POST", "/act", strings.NewReader("verb=failover"))
			order.Host = "localhost"
			p.ServeHTTP(httptest.NewRecorder(), order)
		}
		for range 1000 {
			ask()
		}
		if told := strings.Count(log.String(), "level=WARN"); told != 1 {
			t.Errorf("%d records of 2000 requests", told)
		}
		time.Sleep(time.Second)
		ask()
		if !strings.Contains(log.String(), "not-told=1999") {
			t.Errorf("it does not say how many there were:\n%s", log.String())
		}
	})
}
