//go:build mutation

package proof

import "testing"

func TestUnderATag(t *testing.T) { t.Fatal("failed") }
