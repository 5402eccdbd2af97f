// SPDX-License-Identifier: Apache-2.0

package mywire

import (
	"crypto/ed25519"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // what the servers' plugins are made of
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"slices"

	"filippo.io/edwards25519"
)

// The servers' plugins for passwords.
const (
	nativePassword = "mysql_native_password" //nolint:gosec // a plugin's name
	cachingSHA2    = "caching_sha2_password"
	sha256Password = "sha256_password"
	clearPassword  = "mysql_clear_password"
	mariaEd25519   = "client_ed25519"
	mariaParsec    = "parsec"
)

// auth answers a server's questions for one login.
type auth struct {
	password string
	secret   bool // the connection is encrypted: the password may be sent
	public   bool // the operator chose a connection that is not: a key that the server sends is good enough for him
	plugin   string
	salt     []byte
	stage    int
}

var errClear = errors.New("the server asks for the password in clear text, and the connection is not encrypted: see the connector's key \"sslMode\"")

// begin answers a plugin's first question. An unknown plugin is an error.
func (a *auth) begin(plugin string, salt []byte) ([]byte, error) {
	a.plugin, a.salt, a.stage = plugin, salt, 0
	if len(salt) < saltSize && plugin != clearPassword {
		return nil, errGreeting
	}
	switch plugin {
	case nativePassword:
		return scramble(sha1Sum, salt[:saltSize], a.password, true), nil
	case cachingSHA2:
		return scramble(sha256Sum, salt[:saltSize], a.password, false), nil
	case sha256Password:
		if !a.secret {
			return []byte{1}, nil // asks for the server's key
		}
		return a.clear()
	case clearPassword:
		return a.clear()
	case mariaEd25519:
		return signEd25519(salt, a.password)
	case mariaParsec:
		return nil, nil // asks for the salt of the key
	}
	return nil, fmt.Errorf("the server wants the login to authenticate by %q, which is not known here", plugin)
}

// more answers the next question of the plugin.
func (a *auth) more(data []byte) (reply []byte, replies bool, err error) {
	a.stage++
	switch {
	case a.stage > 3:
		return nil, false, errGreeting
	case a.plugin == cachingSHA2 && len(data) == 1 && data[0] == 3: // it knows the password already
		return nil, false, nil
	case a.plugin == cachingSHA2 && len(data) == 1 && data[0] == 4: // it wants all of it
		if a.secret {
			reply, err = a.clear()
			return reply, true, err
		}
		if !a.public {
			return nil, false, errClear
		}
		return []byte{2}, true, nil // asks for the server's key
	case a.plugin == cachingSHA2 || a.plugin == sha256Password:
		reply, err = a.sealed(data)
		return reply, true, err
	case a.plugin == mariaParsec:
		reply, err = signParsec(a.salt, data, a.password)
		return reply, true, err
	}
	return nil, false, errGreeting
}

func (a *auth) clear() ([]byte, error) {
	if !a.secret {
		return nil, errClear
	}
	return append([]byte(a.password), 0), nil
}

// sealed encrypts the password with a key that the server has sent.
func (a *auth) sealed(data []byte) ([]byte, error) {
	if !a.public {
		return nil, errClear
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("the server sends no key")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	key, ok := parsed.(*rsa.PublicKey)
	if err != nil || !ok {
		return nil, errors.New("the server's key is none for RSA")
	}
	plain := append([]byte(a.password), 0)
	for i := range plain {
		plain[i] ^= a.salt[i%saltSize]
	}
	sealed, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, key, plain, nil) //nolint:gosec // the servers' choice
	if err != nil {
		return nil, errors.New("the server's key cannot be used")
	}
	return sealed, nil
}

func sha1Sum(parts ...[]byte) []byte {
	h := sha1.New() //nolint:gosec // the servers' choice
	return sum(h, parts)
}

func sha256Sum(parts ...[]byte) []byte { return sum(sha256.New(), parts) }

func sha512Sum(parts ...[]byte) []byte { return sum(sha512.New(), parts) }

func sum(h interface {
	io.Writer
	Sum([]byte) []byte
}, parts [][]byte,
) []byte {
	for _, part := range parts {
		_, _ = h.Write(part) // a hash takes everything
	}
	return h.Sum(nil)
}

// scramble is H(password) XOR H(salt, H(H(password))); the salt comes last where it is not first.
func scramble(hash func(...[]byte) []byte, salt []byte, password string, saltFirst bool) []byte {
	if password == "" {
		return nil
	}
	once := hash([]byte(password))
	twice := hash(once)
	mask := hash(twice, salt)
	if saltFirst {
		mask = hash(salt, twice)
	}
	out := make([]byte, len(once))
	subtle.XORBytes(out, once, mask)
	return out
}

// signEd25519 signs as MariaDB's ed25519 plugin wants it: the hash of the password itself is the secret, where Go's library has a seed of 32
// bytes (MariaDB, plugin/auth_ed25519).
func signEd25519(message []byte, password string) ([]byte, error) {
	h := sha512Sum([]byte(password))
	secret, err := edwards25519.NewScalar().SetBytesWithClamping(h[:32])
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	public := new(edwards25519.Point).ScalarBaseMult(secret).Bytes()
	nonce, err := edwards25519.NewScalar().SetUniformBytes(sha512Sum(h[32:], message))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	point := new(edwards25519.Point).ScalarBaseMult(nonce).Bytes()
	challenge, err := edwards25519.NewScalar().SetUniformBytes(sha512Sum(point, public, message))
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	return append(point, challenge.MultiplyAdd(challenge, secret, nonce).Bytes()...), nil
}

// signParsec answers MariaDB's parsec plugin (from 11.6 on): the key is derived from the password with a salt and a number of rounds that the
// server sends, and signs the server's nonce and one of ours.
func signParsec(nonce, question []byte, password string) ([]byte, error) {
	const saltLength, nonceLength, mostRounds = 18, 32, 3
	if len(question) != 2+saltLength || question[0] != 'P' || question[1] > mostRounds || len(nonce) < nonceLength {
		return nil, errors.New("the server asks for a key in a way that is not known here")
	}
	seed, err := pbkdf2.Key(sha512.New, password, question[2:], 1024<<question[1], ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("deriving the key: %w", err)
	}
	own := make([]byte, nonceLength)
	_, _ = rand.Read(own) // never fails
	signature := ed25519.Sign(ed25519.NewKeyFromSeed(seed), slices.Concat(nonce[:nonceLength], own))
	return append(own, signature...), nil
}
