package protect

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// LoadTLS returns the TLS of a PortConfig from PEM files: this host's certificate,
// its key, and the certificates of the authorities that sign the hosts'.
//
// For each new connection it reads the first two files again, and shows the certificate that
// they have now; while they do not fit together, or have a certificate that is not for both
// directions, the one before. The authorities are read once.
func LoadTLS(cert, key, authorities string) (*tls.Config, error) {
	if cert == "" || key == "" || authorities == "" {
		return nil, errors.New("protect: a certificate, its key and the authorities are needed, a file each")
	}
	files, err := readPair(cert, key)
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.X509KeyPair(files[0], files[1])
	}
	if err != nil {
		return nil, fmt.Errorf("protect: certificate %s and key %s: %w", cert, key, err)
	}
	pem, err := os.ReadFile(authorities)
	if err != nil {
		return nil, fmt.Errorf("protect: authorities: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("protect: %s has no certificate", authorities)
	}
	r := &renewed{cert: cert, key: key, pair: &pair, sums: sumsOf(files)}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: pool,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.now(), nil },
	}, nil
}

// renewed is a certificate in files that may be written anew.
type renewed struct {
	cert, key string

	mu   sync.Mutex
	pair *tls.Certificate
	sums [2][sha256.Size]byte // of the files that pair is from
}

// now returns the present certificate. Whether the files have changed is seen from what is in them: a renewed
// certificate often has as many bytes as the one before, and whoever copies it may give it the same time.
func (r *renewed) now() *tls.Certificate {
	r.mu.Lock()
	defer r.mu.Unlock()
	files, err := readPair(r.cert, r.key)
	if err != nil {
		return r.pair
	}
	sums := sumsOf(files)
	if sums == r.sums {
		return r.pair
	}
	pair, err := tls.X509KeyPair(files[0], files[1])
	if err == nil {
		err = bothWays(&tls.Config{Certificates: []tls.Certificate{pair}})
	}
	if err == nil {
		r.pair, r.sums = &pair, sums
	}
	return r.pair
}

// readPair returns what is in the files of a certificate and of its key.
func readPair(cert, key string) (files [2][]byte, err error) {
	if files[0], err = os.ReadFile(cert); err == nil {
		files[1], err = os.ReadFile(key)
	}
	return files, err
}

func sumsOf(files [2][]byte) [2][sha256.Size]byte {
	return [2][sha256.Size]byte{sha256.Sum256(files[0]), sha256.Sum256(files[1])}
}

// bothWays returns an error unless this host can show each of its certificates in both directions:
// the host that follows takes connections, and makes them after a takeover, when it is late to
// find out that nobody lets it in.
func bothWays(t *tls.Config) error {
	for i := range t.Certificates {
		c := &t.Certificates[i]
		leaf := c.Leaf
		if leaf == nil {
			if len(c.Certificate) == 0 {
				return errors.New("protect: TLS has a certificate of this host that is empty")
			}
			var err error
			if leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
				return fmt.Errorf("protect: the certificate of this host: %w", err)
			}
		}
		if !isFor(leaf, x509.ExtKeyUsageServerAuth) {
			return errors.New("protect: the certificate of this host is not for servers (extended key usage), and the other host connects to this one")
		}
		if t.GetClientCertificate == nil && !isFor(leaf, x509.ExtKeyUsageClientAuth) {
			return errors.New("protect: the certificate of this host is not for clients (extended key usage), and this host connects to the other one when it has the guest")
		}
	}
	return nil
}

func isFor(c *x509.Certificate, use x509.ExtKeyUsage) bool {
	return len(c.ExtKeyUsage) == 0 && len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, use) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny)
}

// inItsTime returns err, or a timeError in its place if err says that the other host's
// certificate has expired or is not valid yet: its words do not have the present time in them, so
// that they are told once.
func inItsTime(t *tls.Config, err error) error {
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired || invalid.Cert == nil {
		return err
	}
	if from := invalid.Cert.NotBefore; nowOf(t).Before(from) {
		return &timeError{"is not valid before " + from.UTC().Format(time.RFC3339), err}
	}
	return &timeError{"was valid until " + invalid.Cert.NotAfter.UTC().Format(time.RFC3339), err}
}

// A timeError says in words that a certificate is not of this time.
type timeError struct {
	words string
	cause error
}

func (e *timeError) Error() string {
	return "protect: the certificate of the other host " + e.words + ", by the clock of this host"
}

func (e *timeError) Unwrap() error { return e.cause }

// isOfCertificate reports whether the other side has ended a connection since it does not accept
// the certificate of this one.
func isOfCertificate(err error) bool {
	var alert *net.OpError
	return errors.As(err, &alert) && alert.Op == "remote error" && strings.Contains(alert.Err.Error(), "certificate")
}
