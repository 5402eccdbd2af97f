// SPDX-License-Identifier: Apache-2.0

package mywire

import (
	"bytes"
	"crypto/ed25519"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"testing"

	"filippo.io/edwards25519"
)

// TestScramble: the answers by which a server knows a password without being told it. What the server keeps is a hash of a hash, and it
// can take the answer apart. (15)
func TestScramble(t *testing.T) {
	t.Parallel()
	const password = "Some-1~password.of_forty_characters_long"
	salt := make([]byte, saltSize)
	if _, err := rand.Read(salt); err != nil {
		t.Fatal(err)
	}
	a := auth{password: password}
	for plugin, check := range map[string]struct {
		hash  func(...[]byte) []byte
		first bool
	}{nativePassword: {sha1Sum, true}, cachingSHA2: {sha256Sum, false}} {
		answer, err := a.begin(plugin, salt)
		if err != nil {
			t.Fatal(err)
		}
		stored := check.hash(check.hash([]byte(password)))
		mask := check.hash(stored, salt)
		if check.first {
			mask = check.hash(salt, stored)
		}
		once := make([]byte, len(answer))
		for i := range answer {
			once[i] = answer[i] ^ mask[i]
		}
		if !bytes.Equal(check.hash(once), stored) {
			t.Errorf("%s: a server would not accept the answer", plugin)
		}
	}
	empty := auth{}
	if answer, err := empty.begin(nativePassword, salt); err != nil || answer != nil {
		t.Errorf("without a password: %x, %v", answer, err)
	}
	if _, err := a.begin(nativePassword, salt[:8]); err == nil {
		t.Error("accepted a salt that is too short")
	}
	if _, err := a.begin("authentication_kerberos", salt); err == nil {
		t.Error("accepted a plugin that is not known")
	}
}

// TestSignatures: MariaDB's plugins that sign. Their servers verify with the public key alone, as here. (15, 20)
func TestSignatures(t *testing.T) {
	t.Parallel()
	const password = "foobar"
	nonce := make([]byte, 32)
	for i := range nonce {
		nonce[i] = byte(i*7 + 1)
	}
	a := auth{password: password}
	signature, err := a.begin(mariaEd25519, nonce)
	if err != nil {
		t.Fatal(err)
	}
	// What MariaDB keeps for the account: the public key of the hashed password.
	h := sha512.Sum512([]byte(password))
	secret, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		t.Fatal(err)
	}
	public := new(edwards25519.Point).ScalarBaseMult(secret).Bytes()
	if !ed25519.Verify(public, nonce, signature) {
		t.Error("ed25519: a server would not accept the signature")
	}

	if answer, err := a.begin(mariaParsec, nonce); err != nil || len(answer) > 0 {
		t.Errorf("parsec begins with %x, %v", answer, err)
	}
	salt := bytes.Repeat([]byte{5}, 18)
	answer, replies, err := a.more(append([]byte{'P', 1}, salt...))
	if err != nil || !replies || len(answer) != 32+ed25519.SignatureSize {
		t.Fatalf("parsec answers %d bytes, %v", len(answer), err)
	}
	seed, err := pbkdf2.Key(sha512.New, password, salt, 2048, ed25519.SeedSize)
	if err != nil {
		t.Fatal(err)
	}
	key, ok := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	if !ok || !ed25519.Verify(key, slices.Concat(nonce, answer[:32]), answer[32:]) {
		t.Error("parsec: a server would not accept the signature")
	}
	for name, question := range map[string][]byte{
		"rounds without end": append([]byte{'P', 30}, salt...), "another derivation": append([]byte{'Q', 0}, salt...), "no salt": {'P', 0},
	} {
		b := auth{password: password}
		_, _ = b.begin(mariaParsec, nonce)
		if _, _, err := b.more(question); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestWholePassword: a server that does not remember a login wants the password itself. It gets it encrypted, or not at all. (18)
func TestWholePassword(t *testing.T) {
	t.Parallel()
	const password = "Some-1~password"
	salt := bytes.Repeat([]byte{7}, saltSize)
	begin := func(a auth) *auth {
		if _, err := a.begin(cachingSHA2, salt); err != nil {
			t.Fatal(err)
		}
		return &a
	}
	if _, replies, err := begin(auth{password: password}).more([]byte{3}); replies || err != nil {
		t.Errorf("a server that remembers: replies %t, %v", replies, err)
	}
	if reply, _, err := begin(auth{password: password, secret: true}).more([]byte{4}); err != nil || string(reply) != password+"\x00" {
		t.Errorf("over TLS: %q, %v", reply, err)
	}
	if _, _, err := begin(auth{password: password}).more([]byte{4}); !errors.Is(err, errClear) {
		t.Errorf("in clear text, where the operator did not choose that: %v", err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	sent := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	a := begin(auth{password: password, public: true})
	if reply, _, err := a.more([]byte{4}); err != nil || !bytes.Equal(reply, []byte{2}) {
		t.Errorf("asks for the key: %x, %v", reply, err)
	}
	sealed, _, err := a.more(sent)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := rsa.DecryptOAEP(sha1.New(), nil, key, sealed, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range plain {
		plain[i] ^= salt[i%saltSize]
	}
	if string(plain) != password+"\x00" {
		t.Errorf("the server reads %q", plain)
	}
	if _, _, err := begin(auth{password: password, public: true}).more([]byte("no key")); err == nil {
		t.Error("accepted what is no key")
	}
	endless := begin(auth{password: password, public: true})
	for range 3 {
		_, _, _ = endless.more([]byte{4})
	}
	if _, _, err := endless.more([]byte{4}); err == nil {
		t.Error("a server that asks without end is answered without end")
	}
	if _, err := (&auth{password: password}).begin(clearPassword, nil); !errors.Is(err, errClear) {
		t.Errorf("clear text: %v", err)
	}
}
