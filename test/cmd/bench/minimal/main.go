// SPDX-License-Identifier: Apache-2.0

// Command minimal does the steps that a restart of dbconnector-init cannot do without, and nothing else: it reads the tenant's
// Secret with net/http, logs in once with the driver, and writes the files. It checks nothing and handles no error. It is
// what the restart path of dbconnector-init is measured against.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-sql-driver/mysql"
	"github.com/jackc/pgx/v5"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	ca, err := os.ReadFile(os.Getenv("MINIMAL_API_CA"))
	if err != nil {
		return err
	}
	token, err := os.ReadFile(os.Getenv("MINIMAL_API_TOKEN"))
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, os.Getenv("MINIMAL_SECRET"), nil)
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+string(token))
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var secret struct{ Data map[string]string }
	if err := json.NewDecoder(response.Body).Decode(&secret); err != nil {
		return err
	}
	text, err := base64.StdEncoding.DecodeString(secret.Data["uri"])
	if err != nil {
		return err
	}
	data, err := base64.StdEncoding.DecodeString(secret.Data["record.json"])
	if err != nil {
		return err
	}
	var record struct{ Server struct{ CA string } }
	if err := json.Unmarshal(data, &record); err != nil {
		return err
	}
	dsn := string(text)
	if err := login(ctx, dsn, record.Server.CA); err != nil {
		return err
	}
	out := os.Getenv("MINIMAL_OUT")
	if err := os.WriteFile(filepath.Join(out, "ca.crt"), []byte(record.Server.CA), 0o640); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "dsn"), []byte(dsn), 0o640)
}

func login(ctx context.Context, dsn, ca string) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	if strings.HasPrefix(dsn, "postgres://") {
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			return err
		}
		config.TLSConfig.RootCAs = roots
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			return err
		}
		return conn.Close(ctx)
	}
	config, err := mysql.ParseDSN(strings.TrimPrefix(dsn, "mysql://"))
	if err != nil {
		return err
	}
	config.TLS = &tls.Config{RootCAs: roots}
	connector, err := mysql.NewConnector(config)
	if err != nil {
		return err
	}
	db := sql.OpenDB(connector)
	defer db.Close()
	return db.PingContext(ctx)
}
