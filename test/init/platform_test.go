// SPDX-License-Identifier: Apache-2.0

package init_test

import (
	"encoding/pem"
	"path/filepath"
	"testing"
)

// TestConnectorOfThePlatform: connectors and bundles as people and vCluster Platform make them. (F15, F16)
func TestConnectorOfThePlatform(t *testing.T) {
	t.Parallel()
	for name, on := range engines {
		t.Run("a bundle with text, "+name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, on.Get(t))
			ca := s.connector["caCert"]
			s.connector["caCert"] = "# Roots of 2025\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("none")})) + ca + "# end\n"
			o := s.run(t)
			o.succeeded(t)
			if !o.said("configuration warning", `key \"caCert\" holds 1 blocks that are left out`) &&
				!o.said("configuration warning", `key "caCert" holds 1 blocks that are left out`) {
				t.Errorf("no warning:\n%s", o.stderr)
			}
			if got := read(t, s.outputDir, "ca.crt"); got != ca {
				t.Errorf("handed over is %q, want %q", got, ca)
			}
			if _, err := login(t, s.server, read(t, s.outputDir, "dsn")); err != nil {
				t.Errorf("%s: %v", filepath.Join(s.outputDir, "dsn"), err)
			}
			// A restart accepts it as it is.
			if o := s.run(t); !o.said("ready", "restart:true") {
				t.Errorf("no restart:\n%s", o.stderr)
			}
		})
	}
	for engine, port := range map[string]string{"postgres": "5432", "mysql": "3306"} {
		t.Run("no port, "+engine, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, nil)
			delete(s.connector, "port")
			s.connector["type"], s.connector["endpoint"] = engine, "127.0.0.77" // where nothing listens
			s.env["DBCONNECTOR_TIMEOUT"] = "5s"
			s.run(t).refused(t, 1, "127.0.0.77:"+port)
		})
	}
}
