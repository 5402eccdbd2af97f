// SPDX-License-Identifier: Apache-2.0

package proxy_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"dbconnector/pkg/handover"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

const inSocketMode = "DBCONNECTOR_ADOPT=socket"

// sidecar is dbconnector-rotate in socket mode, when it serves.
func sidecar(tb testing.TB, plane *rig.Tenant, settings ...string) *rig.Process {
	tb.Helper()
	p := rig.Sidecar(tb, plane, settings...)
	serves(tb, p)
	return p
}

func serves(tb testing.TB, p *rig.Process) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) error {
		status, body, err := p.Get(ctx, "/readyz")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("%d %s", status, body)
		}
		return err
	})
}

// who asks the server who a session is.
func who(ctx context.Context, dsn string) (name string, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, "SELECT session_user::text").Scan(&name)
	return name, err
}

// TestSocketHandOver: what init hands over holds no secret, and neither the server's certificate; both programs say the same. A sidecar
// that is started where its directory is missing says which one.
func TestSocketHandOver(t *testing.T) {
	t.Parallel()
	plane := rig.NewKubeTenant(t, rig.Host(t), rig.Server(t, bed.Postgres, "17"), inSocketMode)
	record, err := plane.Record(t.Context())
	require.NoError(t, err)
	dsn, err := plane.DSN()
	require.NoError(t, err)
	assert.Equal(t, "postgres://vcluster@/"+record.Database+"?host="+plane.Out+"&sslmode=disable", dsn)
	files, err := os.ReadDir(plane.Out)
	require.NoError(t, err)
	assert.Len(t, files, 1, "no ca.crt: TLS is the sidecar's")
	p := sidecar(t, plane)
	name, err := who(t.Context(), dsn)
	require.NoError(t, err)
	assert.Equal(t, record.Login(record.Active).User, name)
	info, err := os.Stat(filepath.Join(plane.Out, ".s.PGSQL.5432"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o660), info.Mode().Perm())
	assert.NotZero(t, info.Mode()&os.ModeSocket)
	_, metrics, err := p.Get(t.Context(), "/metrics")
	require.NoError(t, err)
	assert.Contains(t, string(metrics), `dbconnector_adopt_info{mode="socket"} 1`)
	assert.Contains(t, string(metrics), `dbconnector_socket_connects_total{result="ok"} 1`)
	for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
		assert.NotContains(t, string(metrics)+p.Log(), record.Login(slot).Password.Reveal())
	}
	exit, err := p.Stop(t.Context())
	require.NoError(t, err)
	require.Zero(t, exit)

	require.NoError(t, os.RemoveAll(handover.PrivateDir(plane.Out)))
	for what, run := range map[string]func() (rig.Result, error){
		"init": func() (rig.Result, error) { return plane.Run(t.Context()) },
		"rotate": func() (rig.Result, error) {
			p, err := plane.Rotate(t.Context(), "")
			if err != nil {
				return rig.Result{}, err
			}
			<-p.Done()
			return rig.Result{Exit: p.Exit(), Log: p.Log()}, nil
		},
	} {
		r, err := run()
		require.NoError(t, err)
		assert.Equal(t, 2, r.Exit, what)
		assert.Contains(t, r.Log, plane.Out+"-private", what)
	}
}

// TestSocketLoopback: where a control plane takes no unix socket, an address on the loopback interface does the same.
func TestSocketLoopback(t *testing.T) {
	t.Parallel()
	address := bed.FreeAddress(t)
	for _, s := range []struct {
		engine  bed.Engine
		version string
	}{{bed.Postgres, "17"}, {bed.MariaDB, "11.8"}} {
		plane := rig.NewTenant(t, rig.Server(t, s.engine, s.version), "", inSocketMode, "DBCONNECTOR_SOCKET="+address)
		p := sidecar(t, plane)
		dsn, err := plane.DSN()
		require.NoError(t, err)
		assert.Contains(t, dsn, address)
		require.NoError(t, rig.UseDSN(t.Context(), dsn, nil))
		exit, err := p.Stop(t.Context())
		require.NoError(t, err)
		require.Zero(t, exit)
	}
}

// TestSocketWithoutAPIServer: a sidecar that is started while the API server is away serves from its own copy of the record, which the one
// before it kept current through a rotation.
func TestSocketWithoutAPIServer(t *testing.T) {
	t.Parallel()
	plane := rig.NewKubeTenant(t, rig.Host(t), rig.Server(t, bed.Postgres, "17"), inSocketMode)
	dsn, err := plane.DSN()
	require.NoError(t, err)
	first := sidecar(t, plane, "ROTATION_PERIOD=3s", "GRACE=500ms")
	record := rig.Until(t, plane, "a rotation", func(r *tenant.Record) bool { return r.Generation >= 2 })
	bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
		name, err := who(ctx, dsn)
		if err == nil && name != record.Login(record.Active).User {
			record, err = plane.Record(ctx) // there may have been another one
			err = errors.Join(err, fmt.Errorf("a session is on login %s", name))
		}
		return err
	})
	first.Kill()

	away := *plane
	away.Kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	config, err := os.ReadFile(plane.Cluster.API.Kubeconfig)
	require.NoError(t, err)
	lines := strings.Split(string(config), "\n")
	for i, line := range lines {
		if indent, _, found := strings.Cut(line, "server: "); found {
			lines[i] = indent + "server: https://" + bed.FreeAddress(t)
		}
	}
	require.NoError(t, os.WriteFile(away.Kubeconfig, []byte(strings.Join(lines, "\n")), 0o600))
	second := sidecar(t, &away)
	name, err := who(t.Context(), dsn)
	require.NoError(t, err)
	kept, err := func() (*tenant.Record, error) {
		private, err := handover.OpenPrivate(plane.Out)
		if err != nil {
			return nil, err
		}
		return private.Read()
	}()
	require.NoError(t, err)
	assert.Equal(t, kept.Login(kept.Active).User, name)
	second.Kill()
}

// TestSocketRecordLost: a sidecar goes on with what it knows when the record is deleted, damaged, or replaced by one from a backup whose
// passwords are dead, and with the next right one.
func TestSocketRecordLost(t *testing.T) {
	t.Parallel()
	cluster := rig.Host(t)
	plane := rig.NewKubeTenant(t, cluster, rig.Server(t, bed.Postgres, "17"), inSocketMode)
	dsn, err := plane.DSN()
	require.NoError(t, err)
	path := "/api/v1/namespaces/" + rig.Namespace + "/secrets/dbconnector-" + plane.Name
	read := func() map[string]any {
		var secret map[string]any
		require.NoError(t, cluster.API.Do(t.Context(), http.MethodGet, path, nil, &secret))
		metadata, _ := secret["metadata"].(map[string]any)
		delete(metadata, "resourceVersion")
		return secret
	}
	backup := read()
	rotating := sidecar(t, plane, "ROTATION_PERIOD=2s", "GRACE=200ms")
	kine := bed.NewKine(t, dsn, "", "--datastore-connection-max-lifetime=1s") // a client, so that passwords are retired
	rig.Until(t, plane, "two rotations", func(r *tenant.Record) bool { return r.Generation >= 3 && r.OtherRetired })
	rotating.Kill()
	require.NoError(t, kine.Halt(t.Context()))
	p := sidecar(t, plane)
	good := read()
	works := func(what string) {
		t.Helper()
		for range 3 {
			_, err := who(t.Context(), dsn)
			assert.NoError(t, err, what)
		}
	}
	logged := func(message string) {
		t.Helper()
		bed.Eventually(t, rig.Patience, func(context.Context) error {
			if len(p.Lines(message)) == 0 {
				return fmt.Errorf("the sidecar does not say: %s", message)
			}
			return nil
		})
	}
	works("before")
	require.NoError(t, plane.Forget(t.Context()))
	logged("there is no record (waiting)")
	works("with the record deleted")
	require.NoError(t, cluster.API.Do(t.Context(), http.MethodPost, strings.TrimSuffix(path, "/dbconnector-"+plane.Name), backup, nil))
	logged("a step failed (continuing)")
	works("with a record of a backup")
	require.NoError(t, cluster.API.Do(t.Context(), http.MethodPatch, path, map[string]any{"data": map[string]any{
		"record.json": base64.StdEncoding.EncodeToString([]byte("{")),
	}}, nil))
	logged("the record cannot be read (continuing with the last one)")
	works("with a damaged record")
	data, _ := good["data"].(map[string]any)
	require.NoError(t, cluster.API.Do(t.Context(), http.MethodPatch, path, map[string]any{"data": data}, nil))
	works("with the right one again")
}

// TestSocketKilled: a sidecar that is killed under load takes the sessions with it, and nothing else. kine goes on with the next one. (33)
func TestSocketKilled(t *testing.T) {
	t.Parallel()
	const kills = 15
	for _, s := range []struct {
		engine  bed.Engine
		version string
	}{{bed.Postgres, "17"}, {bed.MariaDB, "11.8"}} {
		t.Run(string(s.engine), func(t *testing.T) {
			t.Parallel()
			plane := rig.NewTenant(t, rig.Server(t, s.engine, s.version), "", inSocketMode)
			dsn, err := plane.DSN()
			require.NoError(t, err)
			p := sidecar(t, plane)
			kine := bed.NewKine(t, dsn, "")
			client, err := controlplane.Dial(kine.Endpoint)
			require.NoError(t, err)
			defer client.Close()
			var took []time.Duration
			ended := 0
			for n := range kills {
				p.Kill()
				began := time.Now()
				p = sidecar(t, plane)
				bed.Eventually(t, rig.Patience, func(ctx context.Context) error {
					select {
					case <-kine.Done(): // in a compaction
						ended++
						return bed.Permanent(errors.Join(errors.New("kine ended"), kine.Restart(ctx, dsn, "")))
					default:
					}
					ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
					defer cancel()
					_, err := controlplane.Put(ctx, client, fmt.Sprintf("/killed/%d-%d", n, time.Now().UnixNano()), "x", 0)
					return err
				})
				took = append(took, time.Since(began))
			}
			slices.Sort(took)
			t.Logf("%d kills: kine served again after %s in the median, %s at most; it ended %d times", kills, took[kills/2], took[kills-1], ended)
			assert.Zero(t, ended)
		})
	}
}
