// SPDX-License-Identifier: Apache-2.0

package dbserver

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestTLSConfig(t *testing.T) {
	t.Parallel()
	server := httptest.NewTLSServer(nil)
	t.Cleanup(server.Close)
	ca := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	for name, test := range map[string]struct {
		server Server
		plain  bool
		fails  bool
	}{
		"clear text on request":    {Server{SSLMode: Disable}, true, false},
		"encrypted":                {Server{SSLMode: Require}, false, false},
		"verified":                 {Server{SSLMode: VerifyFull, CA: ca}, false, false},
		"verified but name":        {Server{SSLMode: VerifyCA, CA: ca}, false, false},
		"nothing said":             {Server{}, false, true}, // never clear text by accident
		"no such mode":             {Server{SSLMode: "prefer"}, false, true},
		"CA without a certificate": {Server{SSLMode: VerifyFull, CA: "x"}, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := test.server.TLSConfig()
			if (err != nil) != test.fails || (got == nil) != (test.plain || test.fails) {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

// TestPasswordIsHidden: it shows itself to JSON, which the record needs, and to Reveal, and to nothing else.
func TestPasswordIsHidden(t *testing.T) {
	t.Parallel()
	p := Password("hunter2")
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		for _, value := range []any{p, struct{ P Password }{p}, map[string]Password{"p": p}, []Password{p}} {
			if got := fmt.Sprintf(format, value); strings.Contains(got, "hunter2") {
				t.Errorf("%s shows %s", format, got)
			}
		}
	}
	if data, err := json.Marshal(p); err != nil || string(data) != `"hunter2"` {
		t.Errorf("got %s, %v", data, err)
	}
	if p.Reveal() != "hunter2" {
		t.Errorf("got %s", p.Reveal())
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	for want, s := range map[string]Server{"db:5432": {Host: "db", Port: 5432}, "[::1]:3306": {Host: "::1", Port: 3306}} {
		if got := s.Address(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
