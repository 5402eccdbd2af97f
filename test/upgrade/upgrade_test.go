// SPDX-License-Identifier: Apache-2.0

// Package upgrade_test gives today's programs what earlier releases left behind: the record, the hand-over, and what they had
// made on the server. test/pods has the same with the programs of the commit before, running; this here does not need them.
//
// testdata has a directory for each release that wrote something in another form than the one before. The files in it are as
// that release wrote them, and are never changed: there is no flag that would do so, since then they would prove nothing.
// When the form changes (TestEveryFieldIsFrozen fails, for one), keep what is there and add a directory, named after the
// release to come:
//
//   - vcluster.yaml: the vCluster's own config;
//   - and for each engine: server.sql, what init left on the server; secret, the keys of the record's Secret, as files,
//     after the first rotation; handover, the files; staged.json and repair.json, the record of a rotation that was begun,
//     and of a repair by init that was cut short.
//
// The passwords, the server's address, its CA, the directory of the hand-over and the times are test data, put in place of
// what was there. The times are long ago, so that a rotation is due. What a test cannot choose, the address, the CA and the
// directory, it replaces in turn.
package upgrade_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"dbconnector/pkg/engine/open"
	"dbconnector/pkg/handover"
	"dbconnector/pkg/tenant"
	"dbconnector/test/bed"
	"dbconnector/test/rig"
)

func TestMain(m *testing.M) { rig.Main(m, rig.BriefQuiet) }

// The placeholders in the frozen files for values that a test cannot choose, but for the CA.
const (
	frozenAddress = "127.0.0.1"
	frozenOut     = "/var/run/dbconnector"
	frozenUID     = "11111111-2222-4333-8444-555555555555/blue"
)

// servers are those that something was left behind on.
var servers = []struct {
	engine     bed.Engine
	version    string
	port       string // in the frozen files
	secretType string
}{
	{bed.Postgres, "17", "15432", "servicebinding.io/postgresql"},
	{bed.MySQL, "9.7", "13306", "servicebinding.io/mysql"},
	{bed.MariaDB, "11.8", "13306", "servicebinding.io/mysql"},
}

// releases are the directories of testdata.
func releases(tb testing.TB) (names []string) {
	tb.Helper()
	entries, err := os.ReadDir("testdata")
	require.NoError(tb, err, "looking for frozen files")
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// eachRelease runs a test with the files and tenants that each release has left behind on each server.
func eachRelease(t *testing.T, test func(t *testing.T, l *left)) {
	for _, release := range releases(t) {
		for i, s := range servers {
			t.Run(release+"/"+string(s.engine), func(t *testing.T) {
				t.Parallel()
				test(t, thaw(t, release, i))
			})
		}
	}
}

// left has the files and tenants that a release has left behind, on a server of its own.
type left struct {
	*rig.Tenant
	server     *bed.Server
	dir        string
	secretType string
	replace    *strings.Replacer
}

// thaw makes the server what the release left. The record and the hand-over are not there yet, and nor is the connector: an
// admin is nowhere to be found.
func thaw(tb testing.TB, release string, i int) *left {
	tb.Helper()
	s := servers[i]
	// With a setting, so that it is none of the user's own: the names in it are always the same.
	server := bed.NewServer(tb, s.engine, s.version, bed.Options{LogStatements: true})
	l := thawFor(tb, release, i, server, "")
	l.leave(tb, server)
	return l
}

// thawFor is what the release left for a tenant, but for what is on the server. Where another is not empty it is a second tenant
// with that name.
func thawFor(tb testing.TB, release string, i int, server *bed.Server, another string) *left {
	tb.Helper()
	s := servers[i]
	l := &left{server: server, dir: filepath.Join("testdata", release, string(s.engine)), secretType: s.secretType}
	dir := tb.TempDir()
	out := filepath.Join(dir, "out")
	require.NoError(tb, os.Mkdir(out, 0o755), "making a directory")
	ca, err := os.ReadFile(filepath.Join(l.dir, "handover", handover.CAFile))
	require.NoError(tb, err, "reading frozen files")
	inJSON := func(pem []byte) string { return strings.ReplaceAll(string(pem), "\n", `\n`) }
	replace := []string{
		frozenAddress, server.Host, s.port, strconv.Itoa(server.Port), frozenOut, out,
		string(ca), string(server.CA), inJSON(ca), inJSON(server.CA),
	}
	l.replace = strings.NewReplacer(replace...)
	if another != "" {
		was, is := l.decode(tb, "secret/record.json").Names(), tenant.NamesOf(another)
		l.replace = strings.NewReplacer(append(replace, frozenUID, another, was.Database, is.Database, was.Marker, is.Marker)...)
	}

	config := filepath.Join(dir, "vcluster.yaml")
	require.NoError(tb, os.WriteFile(config, []byte(l.text(tb, "../vcluster.yaml")), 0o600), "writing the vCluster's config")
	frozen := l.decode(tb, "secret/record.json")
	name := strings.ToLower(strings.NewReplacer("/", "-", "_", "-", " ", "-").Replace(strings.TrimPrefix(tb.Name(), "Test"))) + another
	l.Tenant = &rig.Tenant{
		Name: name, Out: out, Cluster: rig.Host(tb), ConnectorName: name,
		Settings: []string{"DBCONNECTOR_TENANT_UID=" + frozen.UID, "DBCONNECTOR_VCLUSTER_CONFIG=" + config},
	}
	return l
}

// leave makes on a server what the release left on one. Up to PostgreSQL 14 there was one provider of locales, and no word for it.
func (l *left) leave(tb testing.TB, server *bed.Server) {
	tb.Helper()
	const inside, provider = "-- in the database", " LOCALE_PROVIDER libc"
	text := l.text(tb, "server.sql")
	if server.Engine == bed.Postgres && server.Version < "15" {
		text = strings.ReplaceAll(text, provider, "")
	}
	outer, inner, found := strings.Cut(text, inside+"\n")
	if !found {
		tb.Fatalf("server.sql has no line %q", inside)
	}
	statements := func(text string) []string {
		return slices.DeleteFunc(strings.Split(strings.TrimSpace(text), "\n"), func(line string) bool { return strings.HasPrefix(line, "--") })
	}
	require.NoError(tb, server.Exec(tb.Context(), statements(outer)...), "making the tenant's objects on the server")
	require.NoError(tb, server.ExecIn(tb.Context(), l.decode(tb, "secret/record.json").Database, statements(inner)...), "making the objects in the database")
}

// text is a frozen file as it would be here.
func (l *left) text(tb testing.TB, file string) string {
	tb.Helper()
	content, err := os.ReadFile(filepath.Join(l.dir, file))
	require.NoError(tb, err, "reading frozen files")
	return l.replace.Replace(string(content))
}

func (l *left) decode(tb testing.TB, file string) *tenant.Record {
	tb.Helper()
	r, err := tenant.DecodeRecord([]byte(l.text(tb, file)))
	require.NoError(tb, err, file)
	return r
}

// secret is the record's.
type secret struct {
	Metadata struct{ ResourceVersion string }
	Data     map[string][]byte
}

func (l *left) path() string {
	return "/api/v1/namespaces/" + rig.Namespace + "/secrets/dbconnector-" + l.Name
}

func (l *left) secret(tb testing.TB) (s secret) {
	tb.Helper()
	require.NoError(tb, l.Cluster.API.Do(tb.Context(), http.MethodGet, l.path(), nil, &s), "reading the record's Secret")
	return s
}

// store makes the record's Secret, with this record in it.
func (l *left) store(tb testing.TB, record string) {
	tb.Helper()
	files, err := os.ReadDir(filepath.Join(l.dir, "secret"))
	require.NoError(tb, err, "reading frozen files")
	data := map[string][]byte{}
	for _, file := range files {
		data[file.Name()] = []byte(l.text(tb, filepath.Join("secret", file.Name())))
	}
	data["record.json"] = []byte(record)
	require.NoError(tb, l.Cluster.API.Do(tb.Context(), http.MethodPost, filepath.Dir(l.path()), map[string]any{
		"metadata": map[string]any{"name": filepath.Base(l.path()), "labels": map[string]string{"app.kubernetes.io/managed-by": "dbconnector"}},
		"type":     l.secretType, "data": data,
	}, nil), "storing the record")
}

// handOver puts the frozen hand-over into the directory, and returns its files.
func (l *left) handOver(tb testing.TB) map[string]string {
	tb.Helper()
	frozen := map[string]string{}
	for _, name := range []string{handover.DSNFile, handover.CAFile, handover.ConfigFile} {
		frozen[name] = l.text(tb, filepath.Join("handover", name))
		require.NoError(tb, os.WriteFile(filepath.Join(l.Out, name), []byte(frozen[name]), 0o640), "putting the hand-over down")
	}
	return frozen
}

// handed are the files of the hand-over.
func (l *left) handed(tb testing.TB) map[string]string {
	tb.Helper()
	entries, err := os.ReadDir(l.Out)
	require.NoError(tb, err, "reading the hand-over")
	files := map[string]string{}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(l.Out, entry.Name()))
		require.NoError(tb, err, "reading the hand-over")
		files[entry.Name()] = string(content)
	}
	return files
}

// sameHandover compares hand-overs: dsn and ca.crt to the byte, the config by what it says, with another DSN in it.
func sameHandover(tb testing.TB, got, frozen map[string]string, dsn string) {
	tb.Helper()
	if !slices.Equal(slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(frozen))) || got[handover.CAFile] != frozen[handover.CAFile] {
		tb.Errorf("the hand-over has the files %q, or another CA", slices.Sorted(maps.Keys(got)))
	}
	if got[handover.DSNFile] != dsn {
		tb.Errorf("the DSN is %q, want %q", got[handover.DSNFile], dsn)
	}
	var now, want any
	require.NoError(tb, yaml.Unmarshal([]byte(got[handover.ConfigFile]), &now), "reading the config of the hand-over")
	require.NoError(tb, yaml.Unmarshal([]byte(strings.ReplaceAll(frozen[handover.ConfigFile], frozen[handover.DSNFile], dsn)), &want), "reading the frozen config")
	if !reflect.DeepEqual(now, want) {
		tb.Errorf("the config is %v, want %v", now, want)
	}
}

// today is the DSN that today's programs hand over for a record. It is the one of the newest frozen hand-over, to the byte, and what an
// older one has in another form is what kine is told otherwise, not where it goes and as whom.
func (l *left) today(tb testing.TB, r *tenant.Record, frozen string) string {
	tb.Helper()
	dsn, err := open.Engine(r.Server, "").DSN(r.Login(r.Active))
	require.NoError(tb, err, "rendering the DSN")
	all := releases(tb)
	if newest := filepath.Join("testdata", all[len(all)-1]); strings.HasPrefix(l.dir, newest) && dsn != frozen {
		tb.Errorf("the DSN has got another form: %q, and was %q", dsn, frozen)
	}
	now, _, _ := strings.Cut(dsn, "?")
	if before, _, _ := strings.Cut(frozen, "?"); now != before {
		tb.Errorf("the DSN leads elsewhere: %q, and was %q", dsn, frozen)
	}
	return dsn
}

// until waits for a record that has a property, and for the hand-over to be its, and returns both.
func (l *left) until(tb testing.TB, what string, has func(*tenant.Record) bool) (r *tenant.Record, dsn string) {
	tb.Helper()
	bed.Eventually(tb, rig.Patience, func(ctx context.Context) (err error) {
		if r, err = l.Record(ctx); err != nil {
			return err
		}
		if r == nil || !has(r) {
			return fmt.Errorf("the record never says: %s: %+v", what, r)
		}
		want, err := open.Engine(r.Server, "").DSN(r.Login(r.Active))
		if err != nil {
			return bed.Permanent(err)
		}
		if dsn, err = l.DSN(); err == nil && dsn != want {
			err = errors.New("the hand-over is not the record's")
		}
		return err
	})
	return r, dsn
}

// kine is a control plane on a DSN: it has a session, and finds its data.
func (l *left) kine(tb testing.TB, dsn string) (leave func()) {
	tb.Helper()
	db, err := rig.OpenDSN(dsn, l.server.CA)
	require.NoError(tb, err, "opening the DSN")
	db.SetMaxOpenConns(1)
	tb.Cleanup(func() { db.Close() })
	var name string
	require.NoError(tb, db.QueryRowContext(tb.Context(), "SELECT name FROM kine").Scan(&name), "reading the data")
	_, err = db.ExecContext(tb.Context(), "UPDATE kine SET id = id + 1")
	require.NoError(tb, err, "writing the data")
	return func() { db.Close() }
}

// TestOldRecordIsRead restarts a control plane that an earlier release has made. No connector is there: init takes the record
// as it is, over one connection, and hands the same login over. Then rotate, on that hand-over, rotates what has become due.
func TestOldRecordIsRead(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, l *left) {
		frozen := l.decode(t, "secret/record.json")
		l.store(t, l.text(t, "secret/record.json"))
		files := l.handOver(t)
		leave := l.kine(t, files[handover.DSNFile])
		before, err := l.server.Connections()
		require.NoError(t, err, "counting connections")
		result := rig.Provision(t, l.Tenant)
		after, err := l.server.Connections()
		require.NoError(t, err, "counting connections")
		if after-before != 1 || !strings.Contains(result.Log, `"restart":true`) {
			t.Errorf("%d connections, want 1, for a restart:\n%s", after-before, result.Log)
		}
		now, err := l.Record(t.Context())
		require.NoError(t, err, "reading the record")
		if !reflect.DeepEqual(now, frozen) {
			t.Errorf("the record is %+v, want %+v", now, frozen)
		}
		sameHandover(t, l.handed(t), files, l.today(t, frozen, files[handover.DSNFile]))

		require.NoError(t, l.Cluster.API.Do(t.Context(), http.MethodPatch, l.path(),
			map[string]any{"data": map[string][]byte{"of-another-tool": []byte("kept")}}, nil), "storing a key of another tool")
		keys := l.secret(t).Data
		sidecar := rig.Sidecar(t, l.Tenant, "GRACE=1s")
		rotated, dsn := l.until(t, "a rotation", func(r *tenant.Record) bool { return r.Generation == frozen.Generation+1 })
		active := frozen.Active.Other()
		if rotated.Active != active || rotated.Slots[active] == frozen.Slots[active] {
			t.Errorf("the active slot is %q, want %q with another password", rotated.Active, active)
		}
		sameHandover(t, l.handed(t), files, dsn)
		l.kine(t, files[handover.DSNFile])() // until all clients have moved, the old one opens, too

		leave()
		l.kine(t, dsn)
		retired, _ := l.until(t, "retired", func(r *tenant.Record) bool { return r.OtherRetired })
		assert.NoError(t, rig.CheckRefused(t.Context(), retired, frozen.Login(frozen.Active)))
		assert.NoError(t, rig.CheckRefused(t.Context(), retired, frozen.Login(active)))
		// The fields that a rotation changes, and no others.
		want := frozen.Clone()
		want.Active, want.Generation, want.RotatedAt, want.Slots = active, frozen.Generation+1, retired.RotatedAt, retired.Slots
		if !reflect.DeepEqual(retired, want) || !retired.RotatedAt.After(frozen.RotatedAt) {
			t.Errorf("the record is %+v, want %+v", retired, want)
		}
		data := l.secret(t).Data
		for key, value := range keys {
			switch key {
			case "record.json":
				continue
			case "username":
				value = []byte(retired.Login(active).User)
			case "password":
				value = []byte(retired.Login(active).Password.Reveal())
			case "uri":
				value = []byte(dsn)
			}
			if string(data[key]) != string(value) {
				t.Errorf("the Secret's key %s is %q, want %q", key, data[key], value)
			}
		}
		if exit, err := sidecar.Stop(t.Context()); err != nil || exit != 0 {
			t.Errorf("asked to end: exit code %d, %v", exit, err)
		}
	})
}

// TestOldRotationIsFinished starts rotate where an earlier release had written the next password into the record and nowhere
// else. It is that password that becomes the active one.
func TestOldRotationIsFinished(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, l *left) {
		frozen := l.decode(t, "staged.json")
		l.store(t, l.text(t, "staged.json"))
		files := l.handOver(t)
		l.kine(t, files[handover.DSNFile])
		rig.Sidecar(t, l.Tenant, "GRACE=1s")
		rotated, dsn := l.until(t, "the rotation", func(r *tenant.Record) bool { return r.Generation == frozen.Generation+1 })
		want := frozen.Clone()
		want.Commit(rotated.RotatedAt)
		if !reflect.DeepEqual(rotated, want) {
			t.Errorf("the record is %+v, want %+v", rotated, want)
		}
		sameHandover(t, l.handed(t), files, dsn)
		l.kine(t, dsn)
	})
}

// TestOldRepairIsFinished starts init where that of an earlier release was killed while it renewed the inactive login, and where
// the operator has raised the connection limit since: for both it needs the admin. The control plane keeps its DSN, and what
// is on the server afterwards is what today's init makes for a new tenant.
func TestOldRepairIsFinished(t *testing.T) {
	t.Parallel()
	eachRelease(t, func(t *testing.T, l *left) {
		frozen := l.decode(t, "repair.json")
		l.store(t, l.text(t, "repair.json"))
		files := l.handOver(t)
		l.kine(t, files[handover.DSNFile])
		require.NoError(t, l.Cluster.Connector(t.Context(), l.ConnectorName,
			rig.Connector(l.server, l.server.AdminUser, l.server.AdminPassword, "", true)), "making the connector")
		const limit = 60
		l.Settings = append(l.Settings, fmt.Sprint("DBCONNECTOR_CONNECTION_LIMIT=", limit))
		rig.Provision(t, l.Tenant)
		repaired, dsn := l.until(t, "the limit", func(r *tenant.Record) bool { return r.ConnectionLimit == limit })
		want := frozen.Clone()
		want.Commit(frozen.RotatedAt)
		want.ConnectionLimit = limit
		// The sidecar must end the sessions of an attacker who logs in with the old password.
		want.Pending = &tenant.Change{Slot: frozen.Pending.Slot, Password: frozen.Pending.Password, Purpose: tenant.Retire}
		if !reflect.DeepEqual(repaired, want) {
			t.Errorf("the record is %+v, want %+v", repaired, want)
		}
		sameHandover(t, l.handed(t), files, l.today(t, frozen, files[handover.DSNFile]))
		for _, slot := range []tenant.Slot{tenant.A, tenant.B} {
			l.kine(t, rig.WithLogin(dsn, repaired.Login(slot)))
		}

		fresh := *l.Tenant
		fresh.Name += "-fresh"
		fresh.Out = t.TempDir()
		fresh.Settings = append(slices.Clone(l.Settings), "DBCONNECTOR_TENANT_UID="+fresh.Name)
		rig.Provision(t, &fresh)
		look, err := rig.Inspect(l.server)
		require.NoError(t, err, "looking at the server")
		defer look.Close()
		got, err := look.Facts(t.Context(), repaired.Names())
		require.NoError(t, err, "looking at the server")
		facts, err := look.Facts(t.Context(), tenant.NamesOf(fresh.Name))
		require.NoError(t, err, "looking at the server")
		if got != facts {
			t.Errorf("on the server is\n%s\nand of a new tenant\n%s", got, facts)
		}
	})
}

// TestNewerRecordIsRefused rolls back to today's programs from a release to come, which wrote a record that they do not know in
// full. Promised is (docs/lifecycle.md, "Upgrade and rollback") that they refuse it and write nothing, so that nothing is
// lost; and that they go on by themselves when there is a record that they know. Of the hand-over nothing has to be known: it
// is made again, and the other files in the directory stay.
func TestNewerRecordIsRefused(t *testing.T) {
	t.Parallel()
	for name, newer := range map[string]struct{ becomes, message string }{
		"field":   {`"version":1,"later":"x"`, "it has a field that this version does not know"},
		"version": {`"version":2`, "it has format version 2, this program knows version 1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := thaw(t, releases(t)[0], 0)
			frozen := l.text(t, "secret/record.json")
			l.store(t, strings.Replace(frozen, `"version":1`, newer.becomes, 1))
			files := l.handOver(t)
			change := func(file, content string) {
				require.NoError(t, os.WriteFile(filepath.Join(l.Out, file), []byte(content), 0o640), "changing the hand-over")
			}
			change("later", "of a release to come")
			change(handover.ConfigFile, files[handover.ConfigFile]+"later: x\n")
			before, handed := l.secret(t), l.handed(t)
			untouched := func(who string) {
				t.Helper()
				if now := l.secret(t); now.Metadata != before.Metadata {
					t.Errorf("%s has written the record", who)
				}
				if now := l.handed(t); !maps.Equal(now, handed) {
					t.Errorf("%s has written the hand-over", who)
				}
			}

			result, err := l.Run(t.Context())
			require.NoError(t, err, "dbconnector-init")
			if result.Exit != 2 || !strings.Contains(result.Log, newer.message) {
				t.Errorf("exit code %d, want 2 and %q:\n%s", result.Exit, newer.message, result.Log)
			}
			untouched("dbconnector-init")
			sidecar := rig.Sidecar(t, l.Tenant, "GRACE=1s")
			bed.Eventually(t, rig.Patience, func(context.Context) error {
				for _, line := range sidecar.Lines("the record cannot be read (continuing with the last one)") {
					if strings.Contains(fmt.Sprint(line["error"]), newer.message) {
						return nil
					}
				}
				return errors.New("the sidecar does not say that it cannot read the record")
			})
			if metrics, err := sidecar.Metrics(t.Context()); err != nil || metrics["dbconnector_consecutive_failures"] == 0 {
				t.Errorf("no metric says so: %v", err)
			}
			if status, body, err := sidecar.Get(t.Context(), "/readyz"); err != nil || status != http.StatusOK {
				t.Errorf("the control plane would be taken out of service: %d %s, %v", status, body, err)
			}
			untouched("dbconnector-rotate")

			leave := l.kine(t, files[handover.DSNFile])
			defer leave()
			require.NoError(t, l.Cluster.API.Do(t.Context(), http.MethodPatch, l.path(),
				map[string]any{"data": map[string]string{"record.json": base64.StdEncoding.EncodeToString([]byte(frozen))}}, nil), "restoring the record")
			_, dsn := l.until(t, "a rotation", func(r *tenant.Record) bool { return r.Generation == l.decode(t, "secret/record.json").Generation+1 })
			files["later"] = "of a release to come"
			sameHandover(t, l.handed(t), files, dsn)
		})
	}
}

// TestEveryFieldIsFrozen makes sure that each field of the record is in a frozen one, with a value. A field that is new is a new
// form: the package's comment says what to do.
func TestEveryFieldIsFrozen(t *testing.T) {
	t.Parallel()
	frozen := map[string]bool{}
	for _, release := range releases(t) {
		for _, s := range servers {
			for _, file := range []string{"secret/record.json", "staged.json", "repair.json"} {
				content, err := os.ReadFile(filepath.Join("testdata", release, string(s.engine), file))
				require.NoError(t, err, "reading frozen files")
				r, err := tenant.DecodeRecord(content)
				require.NoError(t, err, file)
				mark(reflect.ValueOf(r), "Record", frozen)
			}
		}
	}
	for field, is := range frozen {
		if !is {
			t.Errorf("%s is in no frozen record", field)
		}
	}
}

// mark notes of each field whether it has a value.
func mark(v reflect.Value, path string, fields map[string]bool) {
	fields[path] = fields[path] || !v.IsZero()
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			v = reflect.New(v.Type().Elem())
		}
		mark(v.Elem(), path, fields)
	case reflect.Map:
		for _, key := range v.MapKeys() {
			mark(v.MapIndex(key), path+"[]", fields)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range v.NumField() {
			if v.Type().Field(i).Tag.Get("json") == "-" { // kept beside the record: the test needs none of it
				continue
			}
			mark(v.Field(i), path+"."+v.Type().Field(i).Name, fields)
		}
	}
}
