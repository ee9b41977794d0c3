package protect

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// The hosts of a world have certificates in files, as LoadTLS reads them, which are renewed: now and
// then by one that is wrong, and then by the next right one. Keys and certificates are the same each
// time, and signatures of Ed25519 have one size, so that what is sent has the same lengths.

// pairName is the name in each host's certificate.
const pairName = "pair"

// certificates are those of a world.
type certificates struct {
	t         *testing.T
	days      bool // the clock of the day is set
	dir       string
	at        time.Time // when the last file was written
	renewed   int       // files that were written with a right certificate
	wrong     int       // and with a wrong one
	mu        sync.Mutex
	refused   int             // handshakes in which a wrong one was shown
	right     int             // in which a right one was, after a wrong one of the same host
	misshowed map[string]bool // hosts that have shown a wrong one last
}

// An issued is a certificate and its key, as files have them.
type issued struct{ cert, key []byte }

// certificatesOfAll are made once: by kind, and by number.
var certificatesOfAll = sync.OnceValue(func() map[string][]issued {
	key := func(n byte) ed25519.PrivateKey {
		seed := [ed25519.SeedSize]byte{n}
		return ed25519.NewKeyFromSeed(seed[:])
	}
	serial := int64(0)
	issue := func(change func(*x509.Certificate), authority, own ed25519.PrivateKey, by *x509.Certificate) (issued, *x509.Certificate) {
		serial++
		c := &x509.Certificate{
			SerialNumber: big.NewInt(1000 + serial), Subject: pkix.Name{CommonName: "lockstep"},
			NotBefore: time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC),
			DNSNames: []string{pairName},
		}
		change(c)
		if by == nil {
			by = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, by, own.Public(), authority)
		if err != nil {
			panic(err)
		}
		private, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			panic(err)
		}
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			panic(err)
		}
		return issued{
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}),
		}, parsed
	}
	authority := func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.DNSNames = true, true, x509.KeyUsageCertSign, nil
	}
	ours, root := issue(authority, key(1), key(1), nil)
	_, other := issue(authority, key(2), key(2), nil)
	asIs := func(*x509.Certificate) {}
	all := map[string][]issued{"authority": {ours}}
	for n := range byte(8) {
		one, _ := issue(asIs, key(1), key(10+n), root)
		all["right"] = append(all["right"], one)
	}
	for what, of := range map[string]func(*x509.Certificate){
		"of another authority": asIs,
		"of another host":      func(c *x509.Certificate) { c.DNSNames = []string{"stranger"} },
		"that has expired":     func(c *x509.Certificate) { c.NotAfter = time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC) },
		"that expires soon":    func(c *x509.Certificate) { c.NotAfter = epochOfBubbles.Add(20 * time.Second) },
		"for servers only":     func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} },
	} {
		with, by := key(1), root
		if what == "of another authority" {
			with, by = key(2), other
		}
		one, _ := issue(func(c *x509.Certificate) { of(c); c.SerialNumber = wrongSerials[what] }, with, key(30), by)
		all[what] = []issued{one}
	}
	all["that is none"] = []issued{{[]byte("hello"), []byte("hello")}}
	all["with the key of another"] = []issued{{all["right"][0].cert, all["right"][1].key}}
	return all
})

// wrongSerials are the serial numbers of certificates that no host of a world accepts.
var wrongSerials = map[string]*big.Int{
	"of another authority": big.NewInt(2001), "of another host": big.NewInt(2002),
	"that has expired": big.NewInt(2003), "for servers only": big.NewInt(2004),
	"that expires soon": big.NewInt(2005), // until then it is accepted
}

// wrongKinds are all kinds of wrong certificates. The last three LoadTLS does not take.
var wrongKinds = []string{"of another authority", "of another host", "that has expired", "for servers only", "that is none", "with the key of another"}

// newCertificates makes the files of a seed. The name of their directory is not drawn: a bubble of another
// process draws the same, and the next draw would be another.
func newCertificates(t *testing.T, seed uint64, names []string) *certificates {
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("lockstep-%d-%d", os.Getpid(), seed))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &certificates{t: t, dir: dir, at: epochOfBubbles, misshowed: map[string]bool{}}
	c.write("authority.pem", certificatesOfAll()["authority"][0].cert)
	for _, name := range names {
		c.puts(name, certificatesOfAll()["right"][0])
	}
	return c
}

func (c *certificates) path(name string) string { return filepath.Join(c.dir, name) }

// write writes a file, a second later than the one before, whatever the resolution of the file system.
func (c *certificates) write(name string, b []byte) {
	c.at = c.at.Add(time.Second)
	if err := errors.Join(os.WriteFile(c.path(name), b, 0o600), os.Chtimes(c.path(name), c.at, c.at)); err != nil {
		c.t.Fatal(err)
	}
}

// puts writes the files of a host.
func (c *certificates) puts(name string, one issued) {
	c.write(name+".pem", one.cert)
	c.write(name+".key", one.key)
}

// config returns the TLS of a host that begins: its files must have a right certificate.
func (c *certificates) config(name string) *tls.Config {
	all := certificatesOfAll()["right"]
	if c.misses(name) {
		c.puts(name, all[0])
	}
	cfg, err := LoadTLS(c.path(name+".pem"), c.path(name+".key"), c.path("authority.pem"))
	if err != nil {
		c.t.Fatal(err)
	}
	cfg.CurvePreferences = []tls.CurveID{tls.X25519} // a hybrid with ML-KEM is a fifth of what a seed costs
	get := cfg.GetCertificate
	cfg.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := get(h)
		if err == nil {
			c.shows(name, cert.Leaf)
		}
		return cert, err
	}
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if leaf := state.PeerCertificates[0]; leaf.SerialNumber.Cmp(wrongSerials["that expires soon"]) == 0 && !c.days && time.Now().After(leaf.NotAfter) {
			c.t.Errorf("%s accepts a certificate that has expired meanwhile", name)
		}
		for _, what := range wrongKinds {
			if n := wrongSerials[what]; what != "of another host" && n != nil && state.PeerCertificates[0].SerialNumber.Cmp(n) == 0 {
				c.t.Errorf("%s accepts a certificate %s", name, what)
			}
		}
		return nil
	}
	return cfg
}

// misses reports whether the files of a host have no certificate that it can begin with.
func (c *certificates) misses(name string) bool {
	pair, err := tls.LoadX509KeyPair(c.path(name+".pem"), c.path(name+".key"))
	return err != nil || bothWays(&tls.Config{Certificates: []tls.Certificate{pair}}) != nil
}

// shows notes which certificate a host shows.
func (c *certificates) shows(name string, leaf *x509.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	wrong := leaf.SerialNumber.Int64() > 2000
	switch {
	case wrong:
		c.refused++
	case c.misshowed[name]:
		c.right++
	}
	c.misshowed[name] = wrong
}

// renews gives a host another certificate.
func (s *simulation) renews(h *host) {
	c, draw, all := s.certificates, s.kinds.draw, certificatesOfAll()
	if draw.IntN(3) > 0 {
		n := draw.IntN(len(all["right"]))
		s.say("%s is given certificate %d", h.name, n)
		c.puts(h.name, all["right"][n])
		c.renewed++
		return
	}
	what := wrongKinds[draw.IntN(len(wrongKinds))]
	s.say("%s is given a certificate %s", h.name, what)
	c.puts(h.name, all[what][0])
	c.wrong++
}

// rights gives a host a right certificate.
func (c *certificates) rights(name string) { c.puts(name, certificatesOfAll()["right"][7]) }

func (c *certificates) String() string {
	return fmt.Sprintf("%d certificates were renewed and %d wrong ones given, which were shown %d times, and %d times a right one after that", c.renewed, c.wrong, c.refused, c.right)
}
