// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"dbconnector/test/bed"
	"dbconnector/test/controlplane"
	"dbconnector/test/rig"
)

// adminName is the login of the connector: no superuser, but what a managed database
// gives its customer.
const adminName = "platform"

// keys is where the tenants' objects are, as Kubernetes would name them.
const keys = "/registry/configmaps/default/"

type demo struct {
	out    *console
	server string // "PostgreSQL"

	dir     string
	db      *bed.Server
	tenants []*member
	notes   []string // to be said after the step at hand
	rows    []row
}

// member is a tenant of the demo.
type member struct {
	*controlplane.Tenant
	ready   controlplane.Ready
	kine    *bed.Kine
	dsn     string            // of kine's database
	objects map[string]string // that it must find
}

// run shows everything and cleans up.
func (d *demo) run(ctx context.Context, engine bed.Engine, version string) (err error) {
	began := time.Now()
	d.out.line("Two tenants, blue and green, share one %s server. Each gets a database and logins of its", d.server)
	d.out.line("own, and a kine, which is what a vCluster keeps its objects in, runs on what it was handed.")
	if d.dir, err = os.MkdirTemp("", "dbconnector-demo-"); err == nil {
		err = d.show(ctx, engine, version)
	}
	// The context may have ended, cleaning up must not.
	err = errors.Join(err, d.cleanUp(context.WithoutCancel(ctx)))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if len(d.rows) > 0 {
		d.out.line("")
		d.out.table(d.rows)
	}
	d.out.line("")
	if err != nil {
		d.out.line("This did NOT hold, and the demo ended there: %v", err)
		return err
	}
	d.out.line("All of it held. It took %s; the server and its data are gone again.", short(time.Since(began)))
	return nil
}

func (d *demo) cleanUp(ctx context.Context) error {
	var errs []error
	for _, t := range d.tenants {
		if t.kine != nil {
			errs = append(errs, t.kine.Stop(ctx))
		}
	}
	if d.db != nil {
		errs = append(errs, d.db.Stop(ctx))
	}
	if d.dir != "" {
		errs = append(errs, os.RemoveAll(d.dir))
	}
	return errors.Join(errs...)
}

// step does one thing, saying so, and keeps it for the table if it has a title there. f
// returns the outcome in a few words.
func (d *demo) step(parent context.Context, what, tenant, title string, f func(ctx context.Context) (string, error)) error {
	ctx, cancel := context.WithTimeout(parent, time.Minute)
	defer cancel()
	d.out.begin(strings.TrimSpace(fmt.Sprintf("%-6s %s", tenant, what)))
	began := time.Now()
	result, err := f(ctx)
	took := time.Since(began)
	notes := d.notes
	d.notes = nil
	if err != nil && parent.Err() != nil {
		d.out.end("interrupted", took)
		return fmt.Errorf("%s: %w", strings.TrimSpace(tenant+" "+what), err)
	}
	if err != nil {
		d.out.end("FAILED", took)
		d.rows = append(d.rows, row{cmp.Or(title, what), tenant, "FAILED", short(took)})
		return fmt.Errorf("%s: %w", strings.TrimSpace(tenant+" "+what), err)
	}
	d.out.end("ok", took)
	for _, note := range notes {
		d.out.note(note)
	}
	if title != "" {
		d.rows = append(d.rows, row{title, tenant, result, short(took)})
	}
	return nil
}

// each does a step for one tenant after the other.
func (d *demo) each(ctx context.Context, what, title string, f func(ctx context.Context, t *member) (string, error)) error {
	for _, t := range d.tenants {
		if err := d.step(ctx, what, t.Name, title, func(ctx context.Context) (string, error) { return f(ctx, t) }); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) show(ctx context.Context, engine bed.Engine, version string) error {
	for _, chapter := range []struct {
		title string
		f     func(context.Context) error
	}{
		{"1. A " + d.server + " server, and an admin who may create databases and logins, but is no superuser", func(ctx context.Context) error {
			return d.prepare(ctx, engine, version)
		}},
		{"2. dbconnector-init, once for each tenant, and a kine on each hand-over", d.provision},
		{"3. The tenants work: each through the etcd API of its kine, as a Kubernetes API server does", d.work},
		{"4. The tenants misbehave, with the credential that they were handed", d.intrude},
		{"5. A restart on a bad day: the admin's password has changed, and the connector is gone", d.restart},
		{fmt.Sprintf("6. Each tenant's password changes %d times, under load, and still there is no admin", rotations), d.rotate},
		{fmt.Sprintf("7. The same %d times without a password in the control plane, and without a restart", socketRotations), d.socket},
	} {
		d.out.line("\n%s", chapter.title)
		if err := chapter.f(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) prepare(ctx context.Context, engine bed.Engine, version string) error {
	// Downloads and builds of the first time are not the step's time, and have no limit.
	if err := bed.Fetch(ctx, string(engine)+"-"+version, "kine"); err != nil {
		return err
	}
	err := d.step(ctx, "build dbconnector-init and dbconnector-rotate", "", "", func(ctx context.Context) (string, error) {
		return "", rig.Build(ctx, d.dir)
	})
	if err != nil {
		return err
	}
	connector := filepath.Join(d.dir, "connector")
	err = d.step(ctx, "start the server, which takes TLS only; write the connector", "", "", func(ctx context.Context) (_ string, err error) {
		// The log of the logins is the evidence of the last chapter.
		if d.db, err = bed.Start(ctx, engine, version, bed.Options{RequireTLS: true, LogStatements: true}); err != nil {
			return "", err
		}
		number, _, _ := strings.Cut(d.db.FullVersion, "-") // MariaDB goes on with its packager
		d.notes = append(d.notes, fmt.Sprintf("%s %s at %s, with a CA of its own", d.server, number, d.db.Addr()))
		user, password, err := d.db.CloudAdmin(ctx, adminName)
		if err != nil {
			return "", err
		}
		return "", controlplane.WriteConnector(connector, d.db, user, password)
	})
	if err != nil {
		return err
	}

	values, err := controlplane.ShippedValues(ctx, "open-source")
	if err != nil {
		return err
	}
	for _, name := range []string{"blue", "green"} {
		t, err := controlplane.NewTenant(name, connector, filepath.Join(d.dir, name), values)
		if err != nil {
			return err
		}
		d.tenants = append(d.tenants, &member{Tenant: t, objects: map[string]string{}})
	}
	return nil
}

func (d *demo) provision(ctx context.Context) error {
	err := d.each(ctx, "run dbconnector-init", "provision", func(ctx context.Context, t *member) (string, error) {
		var err error
		if t.ready, err = t.Provision(ctx); err != nil {
			return "", err
		}
		if t.ready.Restart {
			return "", errors.New("it says that the tenant was there before")
		}
		return "database " + t.ready.Database, nil
	})
	if err != nil {
		return err
	}
	return d.each(ctx, "start kine on config.yaml", "start kine on the hand-over", func(ctx context.Context, t *member) (string, error) {
		var err error
		t.kine, err = d.newKine(ctx, t)
		return "up, by TLS with the server verified", err
	})
}

// newKine starts a kine on a tenant's hand-over.
func (d *demo) newKine(ctx context.Context, t *member) (*bed.Kine, error) {
	store, err := t.Store()
	if err != nil {
		return nil, err
	}
	if store.CAFile == "" {
		return nil, errors.New("config.yaml names no caFile, so nothing is verified")
	}
	t.dsn = store.DataSource
	return store.StartKine(ctx)
}

func (d *demo) work(ctx context.Context) error {
	err := d.each(ctx, "create 3 objects, update 1, delete 1, and watch", "create, update, delete, watch", write)
	if err != nil {
		return err
	}
	return d.each(ctx, "list what is there", "list", read)
}

// write makes a tenant create, update and delete objects, and see each of these
// changes in a watch.
func write(ctx context.Context, t *member) (string, error) {
	client, err := controlplane.Dial(t.kine.Endpoint)
	if err != nil {
		return "", err
	}
	defer client.Close()
	first, err := controlplane.Put(ctx, client, keys+t.Name+"-0", "written by "+t.Name, 0)
	if err != nil {
		return "", err
	}
	events := client.Watch(ctx, keys, clientv3.WithPrefix(), clientv3.WithRev(first))
	for i := 1; i < 3 && err == nil; i++ {
		_, err = controlplane.Put(ctx, client, fmt.Sprintf("%s%s-%d", keys, t.Name, i), "written by "+t.Name, 0)
	}
	if err != nil {
		return "", err
	}
	changed, err := controlplane.Put(ctx, client, keys+t.Name+"-0", "changed by "+t.Name, first)
	if err != nil {
		return "", err
	}
	if err := controlplane.Delete(ctx, client, keys+t.Name+"-0", changed); err != nil {
		return "", err
	}
	t.objects[keys+t.Name+"-1"], t.objects[keys+t.Name+"-2"] = "written by "+t.Name, "written by "+t.Name

	const want = 5
	seen := 0
	for seen < want {
		response, ok := <-events
		if err := response.Err(); err != nil || !ok {
			return "", fmt.Errorf("watching: ended after %d of %d changes: %w", seen, want, errors.Join(err, ctx.Err()))
		}
		for _, event := range response.Events {
			if !strings.HasPrefix(string(event.Kv.Key), keys+t.Name) {
				return "", fmt.Errorf("watching: saw %s, which belongs to another tenant", event.Kv.Key)
			}
			seen++
		}
	}
	return fmt.Sprintf("%d changes, and the watch saw %d", want, seen), nil
}

// read makes sure that a tenant finds its objects and no others.
func read(ctx context.Context, t *member) (string, error) {
	client, err := controlplane.Dial(t.kine.Endpoint)
	if err != nil {
		return "", err
	}
	defer client.Close()
	objects, err := controlplane.List(ctx, client, keys)
	if err != nil {
		return "", err
	}
	if !maps.Equal(objects, t.objects) {
		return "", fmt.Errorf("found %v, want %v", slices.Sorted(maps.Keys(objects)), slices.Sorted(maps.Keys(t.objects)))
	}
	return fmt.Sprintf("its own %d objects and nothing else", len(objects)), nil
}

func (d *demo) intrude(ctx context.Context) error {
	err := d.each(ctx, "log in to the other tenant's database", "enter the other's database", func(ctx context.Context, t *member) (string, error) {
		return d.refused(ctx, t, d.other(t).ready.Database, "")
	})
	if err != nil {
		return err
	}
	return d.each(ctx, "create a database", "create a database", func(ctx context.Context, t *member) (string, error) {
		return d.refused(ctx, t, t.ready.Database, "CREATE DATABASE mine")
	})
}

func (d *demo) other(t *member) *member {
	if t == d.tenants[0] {
		return d.tenants[1]
	}
	return d.tenants[0]
}

// refused logs in with a tenant's credential, executes the statement if there is one,
// and returns the server's own refusal.
func (d *demo) refused(ctx context.Context, t *member, database, statement string) (string, error) {
	record, err := t.Record(ctx)
	if err != nil {
		return "", err
	}
	login := record.Login(record.Active)
	db, err := d.db.Open(login.User, login.Password.Reveal(), database)
	if err != nil {
		return "", err
	}
	defer db.Close()
	if err = db.PingContext(ctx); err == nil && statement != "" {
		_, err = db.ExecContext(ctx, statement)
	} else if statement != "" {
		return "", fmt.Errorf("logging in: %w", err)
	}
	switch said := controlplane.Refusal(err); {
	case err == nil:
		return "", errors.New("the server let it happen")
	case said == "":
		return "", fmt.Errorf("the server did not refuse it, something else went wrong: %w", err)
	default:
		d.notes = append(d.notes, fmt.Sprintf("%s says: %s", d.server, said))
		code, _, _ := strings.Cut(said, " ")
		return "refused by the server, error " + code, nil
	}
}

func (d *demo) restart(ctx context.Context) error {
	err := d.step(ctx, "stop both kines, change the admin's password, remove the connector", "", "", func(ctx context.Context) (string, error) {
		for _, t := range d.tenants {
			err := t.kine.Stop(ctx)
			t.kine = nil
			if err != nil {
				return "", err
			}
		}
		return "", errors.Join(d.db.SetPassword(ctx, adminName, "Changed-2nd.Password~of_admin"), os.RemoveAll(filepath.Join(d.dir, "connector")))
	})
	if err != nil {
		return err
	}
	err = d.each(ctx, "run dbconnector-init again", "provision again (restart)", d.again)
	if err != nil {
		return err
	}
	return d.each(ctx, "start kine again, list what is there", "start kine again, list", func(ctx context.Context, t *member) (string, error) {
		var err error
		if t.kine, err = d.newKine(ctx, t); err != nil {
			return "", err
		}
		return read(ctx, t)
	})
}

// again runs dbconnector-init and counts on the server's side what it needed.
func (d *demo) again(ctx context.Context, t *member) (string, error) {
	count := func() (all, own, admin int, err error) {
		all, errAll := d.db.Connections()
		own, errOwn := controlplane.Logins(d.db, t.ready.User)
		admin, errAdmin := controlplane.Logins(d.db, adminName)
		return all, own, admin, errors.Join(errAll, errOwn, errAdmin)
	}
	all, own, admin, err := count()
	if err != nil {
		return "", err
	}
	ready, err := t.Provision(ctx)
	if err != nil {
		return "", err
	}
	allNow, ownNow, adminNow, err := count()
	if err != nil {
		return "", err
	}
	all, own, admin = allNow-all, ownNow-own, adminNow-admin
	if !ready.Restart || ready.Database != t.ready.Database || all != 1 || own != 1 || admin != 0 {
		return "", fmt.Errorf("restart path taken: %t; the server counts %d connections, %d of them the tenant's, %d the admin's",
			ready.Restart, all, own, admin)
	}
	return fmt.Sprintf("logins counted: %d as tenant, %d as admin", own, admin), nil
}
