//go:build !linux

package mapping

import "errors"

const sparse = false

func smallPages([]byte) error { return errors.ErrUnsupported }

func release([]byte) error { return errors.ErrUnsupported }
