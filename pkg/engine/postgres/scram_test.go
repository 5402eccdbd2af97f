// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"

	"dbconnector/pkg/tenant"
)

// The exchange of RFC 7677, section 3: from the verifier alone, a server must come to the very bytes that stand there.
func TestVerifierOfRFC7677(t *testing.T) {
	t.Parallel()
	const (
		nonce   = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
		message = "n=user,r=rOprNGfwEbeRWgbNEkqO,r=" + nonce + ",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=" + nonce
		proof   = "dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
		server  = "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
	)
	v, err := verifierWith("pencil", unbase64(t, "W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
	if err != nil {
		t.Fatal(err)
	}
	// RFC 5803, in PostgreSQL's form: SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>
	parts := regexp.MustCompile(`^SCRAM-SHA-256\$4096:W22ZaJ0SNY7soEsUEjb6gQ==\$([^:]{44}):([^:]{44})$`).FindStringSubmatch(v)
	if parts == nil {
		t.Fatalf("not of the form: %s", v)
	}
	stored, key := unbase64(t, parts[1]), unbase64(t, parts[2])
	mac := func(key []byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(message))
		return h.Sum(nil)
	}
	if got := base64.StdEncoding.EncodeToString(mac(key)); got != server {
		t.Errorf("ServerKey signs %s, want %s", got, server)
	}
	client := mac(stored)
	for i, b := range unbase64(t, proof) {
		client[i] ^= b
	}
	if sum := sha256.Sum256(client); !bytes.Equal(sum[:], stored) {
		t.Error("StoredKey does not fit the client's proof")
	}
}

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestVerifier(t *testing.T) {
	t.Parallel()
	p := tenant.NewPassword()
	first, err := verifier(p)
	if err != nil {
		t.Fatal(err)
	}
	second, err := verifier(p)
	if err != nil {
		t.Fatal(err)
	}
	if first == second {
		t.Error("two verifiers of one password are the same: the salt is not random")
	}
	if strings.Contains(first, p.Reveal()) {
		t.Error("the verifier holds the password")
	}
	literal(first) // would panic on text that needs quoting
	if _, err := verifierWith(p, nil, -1); err != nil && strings.Contains(err.Error(), p.Reveal()) {
		t.Error("the error repeats the password")
	}
}
