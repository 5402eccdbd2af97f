// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"dbconnector/pkg/dbserver"
)

// scramIterations is the server's own default (scram_iterations). Our passwords carry 241 bits: a higher count would cost
// every login time and protect nothing.
const scramIterations = 4096

// verifier is the SCRAM-SHA-256 verifier of a password, as PostgreSQL stores it (RFC 5803; src/common/scram-common.c): sent
// in place of the password, it keeps the clear text out of the server's log and of its memory. Its alphabet holds no
// quote. SASLprep (RFC 4013) leaves our passwords, which are ASCII, as they are.
func verifier(password dbserver.Password) (string, error) {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	return verifierWith(password, salt, scramIterations)
}

func verifierWith(password dbserver.Password, salt []byte, iterations int) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password.Reveal(), salt, iterations, sha256.Size)
	if err != nil { // the library's error could repeat its input
		return "", fmt.Errorf("deriving a SCRAM verifier with %d iterations failed", iterations)
	}
	mac := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac(salted, "Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, b64(salt), b64(stored[:]), b64(mac(salted, "Server Key"))), nil
}
