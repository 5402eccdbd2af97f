// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"dbconnector/test/bed"
)

// listen serves connections until the test ends.
func listen(tb testing.TB, serve func(net.Conn)) string {
	tb.Helper()
	l, err := (&net.ListenConfig{}).Listen(tb.Context(), "tcp", "127.0.0.1:0")
	require.NoError(tb, err)
	var mu sync.Mutex
	var open []net.Conn
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			wg.Go(func() { serve(conn) })
		}
	})
	tb.Cleanup(func() {
		shut(l)
		mu.Lock()
		for _, conn := range open {
			shut(conn)
		}
		mu.Unlock()
		wg.Wait()
	})
	return port(l)
}

func port(l net.Listener) string {
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// greets makes a server that says something first and then listens, as SSH, SMTP and MySQL servers do.
func greets(greeting string) func(testing.TB) string {
	return func(tb testing.TB) string {
		return listen(tb, func(conn net.Conn) {
			_, _ = io.WriteString(conn, greeting)
			_, _ = io.Copy(io.Discard, conn)
		})
	}
}

// silent accepts and never answers.
func silent(tb testing.TB) string {
	return listen(tb, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
}

// rude hangs up on every client.
func rude(tb testing.TB) string {
	return listen(tb, func(conn net.Conn) { shut(conn) })
}

// answers makes a server that answers every message, and says nothing before.
func answers(text string) func(testing.TB) string {
	return func(tb testing.TB) string {
		return listen(tb, func(conn net.Conn) {
			if _, err := conn.Read(make([]byte, 512)); err != nil {
				return
			}
			_, _ = io.WriteString(conn, text)
			_, _ = io.Copy(io.Discard, conn)
		})
	}
}

func web(tb testing.TB) string {
	return portOf(tb, httptest.NewServer(http.NotFoundHandler()))
}

func secureWeb(tb testing.TB) string {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	return portOf(tb, server)
}

func portOf(tb testing.TB, server *httptest.Server) string {
	tb.Cleanup(server.Close)
	return port(server.Listener)
}

// closedPort is a port without a listener. No other process gets it while the test runs, because it is bound.
func closedPort(tb testing.TB) string {
	tb.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	require.NoError(tb, err)
	tb.Cleanup(func() { _ = syscall.Close(fd) })
	require.NoError(tb, syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	name, err := syscall.Getsockname(fd)
	require.NoError(tb, err)
	address, ok := name.(*syscall.SockaddrInet4)
	if !ok {
		tb.Fatalf("bound to %T", name)
	}
	return strconv.Itoa(address.Port)
}

// selfSigned makes a self-signed certificate that is valid until then.
func selfSigned(tb testing.TB, until time.Time) *bed.Cert {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(tb, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "self"},
		NotBefore: until.Add(-48 * time.Hour), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(tb, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(tb, err)
	return &bed.Cert{
		Cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}),
	}
}

// Servers with faulty certificates. A client that does not trust a server gets the same error from every version of an
// engine, so one server each is enough.
func otherName() (*bed.Cert, error) {
	return issue(bed.Request{Hosts: []string{"db.elsewhere.example"}})
}

func outdated() (*bed.Cert, error) { return issue(bed.Request{NotAfter: time.Now().Add(-time.Hour)}) }

func issue(r bed.Request) (*bed.Cert, error) {
	ca, err := bed.Authority()
	if err != nil {
		return nil, err
	}
	return ca.Issue(r)
}

// withCert starts a server of its own with a certificate.
func withCert(tb testing.TB, engine bed.Engine, version string, cert func() (*bed.Cert, error)) *bed.Server {
	tb.Helper()
	c, err := cert()
	require.NoError(tb, err)
	return markBusy(bed.NewServer(tb, engine, version, bed.Options{Cert: c}))
}
